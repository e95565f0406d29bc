/** Registered models, and what votes say of their versions. Pure. */

import { number, percent } from "../format.ts";

export interface Version {
  id: string;
  version: number;
  aliases: string[];
  registered_at: number | null;
  run: string | null;
  parent: string | null;
  votes: Record<string, unknown> | null;
  evaluation: Record<string, unknown> | null;
  evaluations: number;
  gate?: { passes: boolean; reasons: string[] } | null;
}

/** Of a canary: the thumbs since it began, and where the difference of the two rates lies, however often one looks. */
export interface Trial {
  candidate: Side;
  prod: Side;
  difference: { low: number; high: number };
  confidence: number;
  automatic: boolean;
}

interface Side {
  model: string;
  ups: number;
  downs: number;
}

export interface Model {
  id: string;
  versions: Version[];
  aliases: Record<string, number>;
  /** Where a name goes that is rolled back; nothing of one that cannot be. */
  before: Record<string, number>;
  canary: { alias: string; percent: number } | null;
  trial?: Trial | null;
  generation: number;
  history: Record<string, unknown>[];
}

/** All votes that stand, and of those that are not of comparisons each person's first. */
export interface Thumbs {
  id: string;
  up: number;
  down: number;
  side_by_side: number;
  people: { up: number; down: number };
}

/** Of `interval`, in words. */
export const LEVEL = "95 %";

/** How often one looks while a canary runs. */
export const WATCH_SECONDS = 15;

/** Of a share that was seen in so many people: where it lies, with 95 % (Wilson's interval). */
export function interval(up: number, all: number): [number, number] {
  if (all === 0) return [0, 1];
  const z = 1.959964;
  const share = up / all;
  const middle = share + z ** 2 / (2 * all);
  const width = z * Math.sqrt((share * (1 - share)) / all + (z / (2 * all)) ** 2);
  const scale = 1 + z ** 2 / all;
  return [Math.max(0, (middle - width) / scale), Math.min(1, (middle + width) / scale)];
}

/** Whether the votes were counted, or the counting failed. */
export type Counted = "loading" | "failed" | "known";

/** `61 % of 1,200 (58 to 64 %)`, of people: many votes of one person are not as many opinions. */
export function rate(thumbs: Thumbs | undefined, known: Counted = "known"): string {
  if (known !== "known") return uncounted(known);
  const { up, down } = thumbs?.people ?? { up: 0, down: 0 };
  if (!(up + down)) return "nobody";
  const [low, high] = interval(up, up + down).map((share) => Math.round(100 * share));
  return `${percent(up / (up + down))} of ${(up + down).toLocaleString("en")} (${low} to ${high} %)`;
}

/** `720 up, 480 down, 20 of them side by side`: votes, not people. */
export function votesCast(thumbs: Thumbs | undefined, known: Counted = "known"): string {
  if (known !== "known") return uncounted(known);
  if (!thumbs || !(thumbs.up + thumbs.down)) return "none";
  const compared = thumbs.side_by_side ? `, ${thumbs.side_by_side.toLocaleString("en")} of them side by side` : "";
  return `${thumbs.up.toLocaleString("en")} up, ${thumbs.down.toLocaleString("en")} down${compared}`;
}

function uncounted(known: "loading" | "failed"): string {
  return known === "loading" ? "…" : "not known";
}

/** What a version's gate says; nothing of a version without one. */
export function gateText(version: Version): string {
  if (!version.gate) return "–";
  return version.gate.passes ? "passes" : version.gate.reasons.join("; ");
}

/** A canary so far, in one sentence per thing. Its thumbs are each person's first. */
export function trialText(trial: Trial): string {
  const side = (one: Side) => `${one.model}: ${one.ups} up, ${one.downs} down`;
  const points = (share: number) => `${share < 0 ? "−" : "+"}${Math.abs(Math.round(100 * share))}`;
  const { low, high } = trial.difference;
  const level = `${number(100 * trial.confidence)} %`;
  const between = `The difference lies between ${points(low)} and ${points(high)} points (${level}), however often you look.`;
  const end = trial.automatic ? " The server promotes or ends it by that." : "";
  return `${side(trial.candidate)}; ${side(trial.prod)}; each person once. ${between}${end}`;
}

/** The names of the metrics that any of the versions has, in the order in which they come. */
export function metricsOf(versions: Version[]): string[] {
  const names = versions.flatMap((version) =>
    Object.entries(version.evaluation ?? {}).filter(([, value]) => typeof value === "number").map(([name]) => name),
  );
  return [...new Set(names)];
}

/**
 * Of the requests that say the bare name, the share that a version answers, in percent; null: it is not asked by it. As
 * the server has it, the bare name is `prod`, and before there is one the newest version whose gate is not shut.
 */
export function shareOf(model: Model, version: number): number | null {
  const candidate = model.canary ? model.aliases[model.canary.alias] : undefined;
  const canary = candidate === undefined ? 0 : (model.canary?.percent ?? 0);
  const open = model.versions.filter((one) => one.gate?.passes ?? true).map((one) => one.version);
  const prod = model.aliases.prod ?? (open.length ? Math.max(...open) : undefined);
  const share = (version === prod ? 100 - canary : 0) + (version === candidate ? canary : 0);
  return version === prod || version === candidate ? share : null;
}

/** What a move of the history says. */
export function said(move: Record<string, unknown>): string {
  const why = `${move.because ? `, because ${move.because}` : ""}${move.forced ? ", forced" : ""}`;
  if ("canary" in move) return `canary ${move.canary} %${why}`;
  const from = typeof move.was === "number" ? ` (was ${move.was})` : "";
  return `${move.alias} → ${move.version ?? "nothing"}${from}${move.rollback ? ", taken back" : ""}${why}`;
}

/** What the newest move says. */
export function lastMove(model: Model): string {
  const move = model.history.at(-1);
  return move ? said(move) : "Nothing has moved";
}
