/** From a job's events to curves. Pure. */

import type { JobEvent } from "./types.ts";

export interface Panel {
  title: string;
  lines: { name: string; metric: string }[];
}

export const PANELS: Panel[] = [
  { title: "Loss", lines: [{ name: "loss", metric: "loss" }] },
  {
    title: "Implicit reward",
    lines: [
      { name: "chosen", metric: "rewards/chosen" },
      { name: "rejected", metric: "rewards/rejected" },
      { name: "delta", metric: "delta" },
    ],
  },
  { title: "Margin", lines: [{ name: "chosen − rejected", metric: "rewards/margins" }] },
  { title: "Telling the classes apart", lines: [{ name: "AUC", metric: "auc" }] },
];

export type Row = Record<string, number | null> & { step: number };

/** One row per step, in order; a step that was done again counts as it was last. `events`: the newest first. */
export function rowsOf(events: JobEvent[]): Row[] {
  const rows = new Map<number, Row>();
  for (const event of [...events].reverse()) {
    const step = event.data.step;
    if (event.type !== "metrics" || typeof step !== "number") continue;
    const numbers = Object.entries(event.data).map(([name, value]) => [name, typeof value === "number" ? value : null]);
    rows.set(step, { loss: null, ...Object.fromEntries(numbers), step } as Row);
  }
  for (const row of rows.values()) row.loss ??= row.train_loss ?? null;
  return [...rows.values()].sort((a, b) => a.step - b.step);
}

/** As uPlot takes it: the steps, counted from 1, and below them each line's values. */
export function seriesOf(panel: Panel, rows: Row[]): (number | null)[][] {
  return [rows.map((row) => row.step + 1), ...panel.lines.map(({ metric }) => rows.map((row) => row[metric] ?? null))];
}

/** The newest value of each line there is one of. */
export function newest(panel: Panel, rows: Row[]): { name: string; value: number }[] {
  return panel.lines.flatMap(({ name, metric }) => {
    const value = rows.findLast((row) => typeof row[metric] === "number")?.[metric];
    return typeof value === "number" ? [{ name, value }] : [];
  });
}
