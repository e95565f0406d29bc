/** From a JSON schema to the fields of a form, and from what was typed there back to JSON. Pure. */

export type Schema = {
  [name: string]: unknown;
  $ref?: string;
  $defs?: Record<string, Schema>;
  type?: string;
  title?: string;
  description?: string;
  default?: unknown;
  const?: unknown;
  enum?: unknown[];
  anyOf?: Schema[];
  properties?: Record<string, Schema>;
  minimum?: number;
  maximum?: number;
  exclusiveMinimum?: number;
  exclusiveMaximum?: number;
  pattern?: string;
};

export interface Input {
  path: string[];
  name: string;
  kind: "integer" | "number" | "text" | "choice" | "json";
  choices: unknown[];
  /** Besides numbers a word may be said, as `auto`. */
  words: string[];
  /** What holds if nothing is typed. */
  otherwise: string;
  bounds: Bounds;
}

interface Bounds {
  least?: number;
  most?: number;
  above?: number;
  below?: number;
  pattern?: string;
}

export interface Group {
  name: string;
  path: string[];
  help: string;
  inputs: Input[];
  groups: Group[];
}

/** Everything that a schema of an object lets one say. `off`: there is none of it unless something is said. */
export function groupOf(name: string, schema: Schema, root: Schema = schema, path: string[] = [], off = false): Group {
  const group: Group = { name, path, help: tidy(schema.description), inputs: [], groups: [] };
  for (const [field, raw] of Object.entries(schema.properties ?? {})) {
    const here = [...path, field];
    const kinds = kindsOf(raw, root);
    const object = kinds.length === 1 && kinds[0]!.properties ? kinds[0]! : null;
    if (object) group.groups.push(inner(field, raw, object, root, here, off));
    else group.inputs.push(off ? { ...inputOf(here, raw, kinds), otherwise: "" } : inputOf(here, raw, kinds));
  }
  return group;
}

function inner(field: string, raw: Schema, object: Schema, root: Schema, path: string[], off: boolean): Group {
  const none = raw.default === null;
  const group = groupOf(field, object, root, path, off || none);
  return none ? { ...group, help: `${group.help} Left empty: none.`.trim() } : group;
}

/** What was typed, as JSON; nothing typed is undefined. Throws an Error in words. */
export function read(input: Input, text: string): unknown {
  const said = text.trim();
  if (!said) return undefined;
  if (input.kind === "choice") return input.choices.find((choice) => spelled(choice) === said);
  if (input.kind === "text") return matching(input, said);
  if (input.words.includes(said)) return said;
  if (input.kind === "json") return jsonOrText(said);
  const number = Number(said);
  const fits = Number.isFinite(number) && (input.kind === "number" || Number.isInteger(number)) && within(number, input.bounds);
  if (!fits) throw new Error(wanted(input));
  return number;
}

/** The object that was typed, and what does not fit; both by the path of the input. */
export function readAll(group: Group, typed: Record<string, string>): { value: Record<string, unknown>; wrong: Record<string, string> } {
  const value: Record<string, unknown> = {};
  const wrong: Record<string, string> = {};
  for (const input of inputsOf(group)) {
    const key = input.path.join(".");
    try {
      const one = read(input, typed[key] ?? "");
      if (one !== undefined) put(value, input.path, one);
    } catch (error) {
      wrong[key] = (error as Error).message;
    }
  }
  return { value, wrong };
}

export function inputsOf(group: Group): Input[] {
  return [...group.inputs, ...group.groups.flatMap(inputsOf)];
}

export function spelled(value: unknown): string {
  return typeof value === "string" ? value : JSON.stringify(value);
}

function kindsOf(schema: Schema, root: Schema): Schema[] {
  return (schema.anyOf ?? [schema]).map((kind) => resolved(kind, root)).filter((kind) => kind.type !== "null");
}

function resolved(schema: Schema, root: Schema): Schema {
  const name = schema.$ref?.split("/").at(-1);
  return name ? (root.$defs?.[name] ?? {}) : schema;
}

function inputOf(path: string[], raw: Schema, kinds: Schema[]): Input {
  const words = kinds.filter((kind) => typeof kind.const === "string").map((kind) => kind.const as string);
  const rest = kinds.length > words.length ? kinds.filter((kind) => typeof kind.const !== "string") : kinds;
  const only = rest.length === 1 ? rest[0]! : {};
  const { minimum: least, maximum: most, exclusiveMinimum: above, exclusiveMaximum: below, pattern } = only;
  const choices = only.enum ?? (only.const !== undefined ? [only.const] : only.type === "boolean" ? [true, false] : []);
  return {
    path,
    name: path.at(-1)!.replaceAll("_", " "),
    kind: kindOf(only, choices),
    choices,
    words: rest === kinds ? [] : words,
    otherwise: raw.default === undefined ? "" : raw.default === null ? "none" : spelled(raw.default),
    bounds: { least, most, above, below, pattern },
  };
}

function kindOf(schema: Schema, choices: unknown[]): Input["kind"] {
  if (choices.length) return "choice";
  if (schema.type === "integer" || schema.type === "number") return schema.type;
  return schema.type === "string" ? "text" : "json";
}

function within(number: number, { least, most, above, below }: Bounds): boolean {
  return (
    (least === undefined || number >= least) &&
    (most === undefined || number <= most) &&
    (above === undefined || number > above) &&
    (below === undefined || number < below)
  );
}

function wanted({ kind, words, bounds: { least, most, above, below } }: Input): string {
  const lower = least !== undefined ? `at least ${least}` : above !== undefined ? `above ${above}` : "";
  const upper = most !== undefined ? `at most ${most}` : below !== undefined ? `below ${below}` : "";
  const range = [lower, upper].filter(Boolean).join(" and ");
  const number = `${kind === "integer" ? "A whole number" : "A number"}${range ? `, ${range}` : ""}`;
  return `${[number, ...words].join(", or ")}.`;
}

function matching(input: Input, said: string): string {
  if (input.bounds.pattern && !new RegExp(input.bounds.pattern, "u").test(said)) {
    throw new Error("Letters, digits, dots, hyphens and underscores; a letter or digit first, 64 at most.");
  }
  return said;
}

/** Lists, objects and numbers as JSON; whatever is none is a text. */
function jsonOrText(said: string): unknown {
  try {
    return JSON.parse(said);
  } catch (error) {
    if (/^[[{"]/.test(said)) throw new Error(`Not valid JSON: ${(error as Error).message}`);
    return said;
  }
}

function put(object: Record<string, unknown>, path: string[], value: unknown): void {
  const [first, ...rest] = path as [string, ...string[]];
  if (!rest.length) object[first] = value;
  else put((object[first] ??= {}) as Record<string, unknown>, rest, value);
}

function tidy(text: unknown): string {
  return typeof text === "string" ? text.replace(/\s+/g, " ").replaceAll("`", "") : "";
}
