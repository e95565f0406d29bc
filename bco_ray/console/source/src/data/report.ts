/** What a log turned out to be, as tables and curves. Pure. */

import { percent } from "../format.ts";
import { hasEnded } from "../jobs/types.ts";

export interface Rate {
  key: string;
  ups?: number;
  downs?: number;
  up_rate?: number | null;
}

export type Unit = "day" | "week" | "month";

export type Quantiles = Record<string, number | null>;

export interface Statistics {
  rows: number;
  up_rate: number | null;
  by_source: Rate[];
  by_model: Rate[];
  over_time: { unit: Unit; rates: Rate[] };
  length: Record<"prompt" | "completion", Record<"up" | "down", Quantiles>>;
  prompts: { distinct: number; with_both_labels: number; most_votes_on_one: number };
  users: { distinct: number; exact: boolean; votes_per_user: Quantiles; top_share: Record<string, number | null> };
  agreement: { pairs: number; rate: number | null; chance: number | null };
  rows_with: Record<string, number>;
}

export interface Matching {
  applied?: boolean;
  reason?: string;
  auc?: number | null;
  auc_low?: number | null;
  auc_high?: number | null;
  ess_fraction?: number | null;
  warnings?: string[];
}

export interface Report {
  read: number;
  kept: number;
  drops: Record<string, number>;
  /** Of a log that has answers and votes apart. */
  answers: Record<string, number>;
  statistics: Statistics;
  matching: Matching | null;
}

export interface RefusedRow {
  id: string;
  stage: string;
  reason: string;
  detail: string | null;
  file: string;
  position: number;
  raw: string;
  truncated: boolean;
}

/** How a job has ended, as a verb. */
export function endOf(status: string): string {
  return status === "cancelled" ? "was cancelled" : status;
}

/** The reasons, the most frequent first. */
export function reasonsOf(report: Report): [string, number][] {
  return Object.entries(report.drops).sort(([a, m], [b, n]) => n - m || a.localeCompare(b));
}

/** For a plot over time: unix seconds of the first day of each day, week or month, and the share of thumbs up. */
export function overTime(rates: Rate[]): [number[], (number | null)[]] {
  const known = rates.filter((rate) => /^\d{4}-\d{2}(-\d{2})?$/.test(rate.key));
  return [known.map(({ key }) => Date.parse(`${key.padEnd(10, "-01")}T00:00:00Z`) / 1000), known.map((rate) => rate.up_rate ?? null)];
}

/** Whether the prompts of ups and downs differ, in a sentence. */
export function shiftOf(matching: Matching | null, status: string): string {
  if (!matching && status === "succeeded") return "Not known: the version that the job made, or what its votes were scored to, is not there any more.";
  if (!matching && hasEnded({ status })) return `Not known: the job ${endOf(status)} before it had made a version, which says it.`;
  if (!matching) return "Known once the job has succeeded.";
  if (typeof matching.auc !== "number") return matching.reason ?? "It was not looked at.";
  const { auc_low: low, auc_high: high } = matching;
  const known = typeof low === "number" && typeof high === "number";
  const range = known ? ` (${Math.max(0, low).toFixed(2)} to ${Math.min(1, high).toFixed(2)})` : "";
  const told = `A classifier tells the prompts of ups and downs apart with AUC ${matching.auc.toFixed(2)}${range}; 0.5 is chance.`;
  const left = typeof matching.ess_fraction === "number" ? `, which leaves ${percent(matching.ess_fraction)} of their information` : "";
  return `${told} ${matching.applied ? `Rows are weighted against it${left}.` : "Rows are not weighted."}`;
}

/** Of all votes that name a user, what the busiest ones gave: the counts that say something. */
export function busiest(share: Record<string, number | null>, users: number): [number, number][] {
  return Object.entries(share)
    .map(([count, part]): [number, number | null] => [Number(count), part])
    .filter((one): one is [number, number] => one[1] !== null && one[0] <= Math.max(1, users))
    .sort(([a], [b]) => a - b);
}
