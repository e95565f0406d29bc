/** What a log turned out to be, as tables and curves. Pure. */

export interface Rate {
  key: string;
  ups?: number;
  downs?: number;
  up_rate?: number | null;
}

export type Quantiles = Record<string, number | null>;

export interface Statistics {
  rows: number;
  up_rate: number | null;
  by_source: Rate[];
  by_model: Rate[];
  by_month: Rate[];
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
}

/** The reasons, the most frequent first. */
export function reasonsOf(report: Report): [string, number][] {
  return Object.entries(report.drops).sort(([a, m], [b, n]) => n - m || a.localeCompare(b));
}

/** For a plot over time: unix seconds of each month's first day, and the share of thumbs up. */
export function overTime(months: Rate[]): [number[], (number | null)[]] {
  const known = months.filter((month) => /^\d{4}-\d{2}$/.test(month.key));
  return [known.map((month) => Date.parse(`${month.key}-01T00:00:00Z`) / 1000), known.map((month) => month.up_rate ?? null)];
}

/** Whether the prompts of ups and downs differ, in a sentence. */
export function shiftOf(matching: Matching | null): string {
  if (!matching) return "Known once the job has succeeded.";
  if (typeof matching.auc !== "number") return matching.reason ?? "It was not looked at.";
  const { auc_low: low, auc_high: high } = matching;
  const known = typeof low === "number" && typeof high === "number";
  const range = known ? ` (${Math.max(0, low).toFixed(2)} to ${Math.min(1, high).toFixed(2)})` : "";
  const told = `A classifier tells the prompts of ups and downs apart with AUC ${matching.auc.toFixed(2)}${range}; 0.5 is chance.`;
  const left = typeof matching.ess_fraction === "number" ? `, which leaves ${Math.round(100 * matching.ess_fraction)} % of their information` : "";
  return `${told} ${matching.applied ? `Rows are weighted against it${left}.` : "Rows are not weighted."}`;
}

/** Of all votes that name a user, what the busiest ones gave: the counts that say something. */
export function busiest(share: Record<string, number | null>, users: number): [number, number][] {
  return Object.entries(share)
    .map(([count, part]): [number, number | null] => [Number(count), part])
    .filter((one): one is [number, number] => one[1] !== null && one[0] <= Math.max(1, users))
    .sort(([a], [b]) => a - b);
}
