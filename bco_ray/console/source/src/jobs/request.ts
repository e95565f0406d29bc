/** From a filled form to the body of a request for a job. Pure. */

import { ApiError } from "../api.ts";
import { groupOf, inputsOf, readAll, type Group, type Schema } from "./schema.ts";

/** What `GET /v1/fine_tuning/schema` answers. */
export interface Schemas {
  methods: string[];
  request: Schema;
  spec: Schema;
}

export interface Form {
  hyperparameters: Group;
  budget: Group;
  rest: Group;
  spec: Group;
}

/** Of the request's fields those that the page asks for by itself. */
const OWN = new Set(["model", "training_file", "method"]);
/** And those that no request may say, or that only older clients do. */
const LEFT_OUT = new Set(["validation_file", "integrations", "hyperparameters", "budget", "spec"]);

export function formOf({ request, spec }: Schemas): Form {
  const part = (name: string) => groupOf(name, { ...request.$defs?.[name[0]!.toUpperCase() + name.slice(1)] }, request, [name]);
  const others = Object.entries(request.properties ?? {}).filter(([name]) => !OWN.has(name) && !LEFT_OUT.has(name));
  return {
    hyperparameters: part("hyperparameters"),
    budget: part("budget"),
    rest: groupOf("request", { properties: Object.fromEntries(others) }, request),
    spec: groupOf("spec", spec, spec, ["spec"]),
  };
}

export interface Chosen {
  model: string;
  training_file: string;
  method: string;
}

/** The body, and by the input's path what does not fit. */
export function bodyOf(chosen: Chosen, form: Form, typed: Record<string, string>): { body: Record<string, unknown>; wrong: Record<string, string> } {
  const parts = [form.hyperparameters, form.budget, form.rest, form.spec].map((group) => readAll(group, typed));
  const said = Object.assign({}, ...parts.map((part) => part.value)) as Record<string, unknown>;
  const wrong: Record<string, string> = Object.assign({}, ...parts.map((part) => part.wrong));
  if (!chosen.model.trim()) wrong.model = "Name a model.";
  if (!chosen.training_file.trim()) wrong.training_file = "Say which votes.";
  const { hyperparameters, ...rest } = said;
  const method = { type: chosen.method, ...(hyperparameters ? { [chosen.method]: { hyperparameters } } : {}) };
  return { body: { model: chosen.model.trim(), training_file: chosen.training_file.trim(), method, ...rest }, wrong };
}

/** The field that the server's refusal is about, or the group of fields; null: none of those that are here. */
export function placeOf(refusal: unknown, form: Form): string | null {
  if (!(refusal instanceof ApiError)) return null;
  const said = refusal.param ?? (refusal.status === 404 ? "training_file" : null);
  if (said === null) return null;
  const param = said.replace(/^method\.[^.]+\./, "");
  const inputs = [form.hyperparameters, form.budget, form.rest, form.spec].flatMap(inputsOf).map((input) => input.path.join("."));
  const groups = form.spec.groups.flatMap(allOf).map((group) => group.path.join("."));
  const holds = (path: string) => param === path || param.startsWith(`${path}.`);
  return longest([...OWN, ...inputs].filter(holds)) ?? longest(groups.filter(holds));
}

function allOf(group: Group): Group[] {
  return [group, ...group.groups.flatMap(allOf)];
}

function longest(paths: string[]): string | null {
  return paths.sort((a, b) => b.length - a.length)[0] ?? null;
}
