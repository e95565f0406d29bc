/** What `bco evaluate` found out about versions, as rows of a table: numbers and where they lie. Pure. */

import { number, percent, time } from "../format.ts";

export interface Estimated {
  value: number | null;
  low: number | null;
  high: number | null;
}

export interface Evaluation {
  id: string;
  at: number;
  confidence: number | null;
  votes: { rows: number; ups: number; prompts: number; metrics: Record<string, Estimated> } | null;
  answers: number;
  answer_tokens: Estimated;
  kl_on_policy: Estimated;
  opponents: {
    model: string;
    role: "base" | "live" | "named" | "reference";
    difference: Record<string, Estimated>;
    win_rate: { judge: string; wins: number; ties: number; losses: number; undecided: number; rate: Estimated } | null;
  }[];
  regression: { prompts: number; failed: string[] } | null;
  notes: string[];
}

/** Of a version: its newest evaluation, null if there is none; or in words why it is not here. */
export type Found = Evaluation | null | string;

const DASH = "–";

/** `0.7 (0.6 to 0.8)`; of a difference with its sign. */
export function estimateText({ value, low, high }: Estimated, signed = false): string {
  const said = (one: number) => `${signed && one > 0 ? "+" : ""}${number(one, 3).replace("-", "−")}`;
  if (value === null) return DASH;
  return low === null || high === null ? said(value) : `${said(value)} (${said(low)} to ${said(high)})`;
}

/** One row per number that any of the versions has; a cell each, in their order. */
export function rowsOf(found: Found[]): { title: string; cells: string[] }[] {
  const there = found.filter((one): one is Evaluation => one !== null && typeof one !== "string");
  const rows: { title: string; cells: string[] }[] = [];
  const row = (title: string, cell: (one: Evaluation) => string) =>
    rows.push({ title, cells: found.map((one) => (one === null || typeof one === "string" ? DASH : cell(one))) });
  row("Evaluated", (one) => time(one.at));
  rows[0]!.cells = rows[0]!.cells.map((cell, place) => (typeof found[place] === "string" ? (found[place] as string) : found[place] ? cell : "never"));
  if (!there.length) return rows;
  row("Intervals hold with", ({ confidence }) => (confidence === null ? DASH : `${number(100 * confidence)} %`));
  row("Held-out votes", ({ votes }) => (votes ? `${number(votes.rows)}, ${percent(votes.rows ? votes.ups / votes.rows : null)} up` : DASH));
  for (const name of namesOf(there.map((one) => Object.keys(one.votes?.metrics ?? {})))) {
    row(name, (one) => (one.votes && Object.hasOwn(one.votes.metrics, name) ? estimateText(one.votes.metrics[name]!) : DASH));
  }
  row("Tokens of an answer", (one) => estimateText(one.answer_tokens));
  row("Nats from the reference, by its own answers", (one) => estimateText(one.kl_on_policy));
  if (there.some((one) => one.opponents.length)) {
    row("Compared", (one) => one.opponents.map(againstText).join("; ") || DASH);
  }
  if (there.some((one) => one.regression)) row("Must-pass prompts", (one) => regressionText(one.regression));
  if (there.some((one) => one.notes.length)) row("Notes", (one) => one.notes.join(" ") || DASH);
  return rows;
}

/** How often it wins, and by how much its numbers are other, each with its interval. */
function againstText({ model, difference, win_rate }: Evaluation["opponents"][number]): string {
  const wins = win_rate ? [`wins ${estimateText(win_rate.rate)} of ${number(win_rate.wins + win_rate.ties + win_rate.losses)} by ${win_rate.judge}`] : [];
  const others = Object.entries(difference)
    .filter(([, one]) => one.value !== null)
    .map(([name, one]) => `${name} ${estimateText(one, true)}`);
  return `with ${model}: ${[...wins, ...others].join(", ") || "nothing to say"}`;
}

function regressionText(regression: Evaluation["regression"]): string {
  if (!regression) return DASH;
  const { prompts, failed } = regression;
  return failed.length ? `${prompts - failed.length} of ${prompts}; failed: ${failed.join(", ")}` : `all ${prompts}`;
}

function namesOf(lists: string[][]): string[] {
  return [...new Set(lists.flat())];
}
