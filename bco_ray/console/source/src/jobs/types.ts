/** The parts of OpenAI's objects, and of ours beside them, that are shown. */

import { count, duration, time } from "../format.ts";

export interface Job {
  id: string;
  status: string;
  model: string;
  training_file: string;
  fine_tuned_model: string | null;
  user_provided_suffix: string | null;
  created_at: number;
  started_at: number | null;
  finished_at: number | null;
  attempt: number;
  priority: number;
  trained_tokens: number | null;
  metadata: Record<string, string>;
  method: { type: string };
  error: { code: string; message: string } | null;
  status_details: {
    phase: string | null;
    percent: number | null;
    eta_seconds: number | null;
    step: number | null;
    total_steps: number | null;
    waiting_for: string | null;
    checkpoint_step: number | null;
    problem: string | null;
    on_cluster: boolean;
  };
  spec: Record<string, unknown>;
  evaluation: Record<string, unknown> | null;
  budget: Budget | null;
  spent: Record<string, number>;
  retried_from: { job: string; step: number | null } | null;
}

/** What a job may use; null: as much as it takes. `deadline`: unix seconds. */
export interface Budget {
  hours: number | null;
  gpu_hours: number | null;
  tokens: number | null;
  deadline: number | null;
}

export interface JobEvent {
  id: string;
  created_at: number;
  level: "info" | "warn" | "error";
  message: string;
  type: "message" | "metrics";
  data: Record<string, unknown>;
}

export interface Checkpoint {
  id: string;
  created_at: number;
  step_number: number;
  metrics: Record<string, number | null>;
}

export interface Estimate {
  rows: number;
  usable_rows: number;
  label_rate: number | null;
  exact: boolean;
  tokens_per_row: number | null;
  trained_tokens: number;
  steps: number;
  parameters: number;
  trained_parameters: number;
  memory: Record<string, number>;
  workers: number;
  seconds: number | null;
  gpu_hours: number | null;
  basis: string;
  warnings: string[];
}

const ENDED = new Set(["succeeded", "failed", "cancelled"]);

/** What a job has used. Hours are what budgets count in, and far too long a unit for a small job. */
export function spentText(spent: Record<string, number>): string {
  const { hours = 0, gpu_hours = 0, tokens = 0 } = spent;
  const time = (some: number) => (some > 0 && some * 3600 < 1 ? "less than 1 s" : duration(some * 3600));
  return [time(hours), ...(gpu_hours > 0 ? [`${time(gpu_hours)} of GPUs`] : []), count(tokens, "token")].join(", ");
}

/** What it may use, in the words of `spentText`. */
export function budgetText({ hours, gpu_hours, tokens, deadline }: Budget): string {
  const most = [
    ...(hours === null ? [] : [duration(hours * 3600)]),
    ...(gpu_hours === null ? [] : [`${duration(gpu_hours * 3600)} of GPUs`]),
    ...(tokens === null ? [] : [count(tokens, "token")]),
    ...(deadline === null ? [] : [`until ${time(deadline)}`]),
  ];
  return most.join(", ");
}

/** What is told once a job that was watched has ended. */
export function endText(job: Pick<Job, "status" | "error" | "fine_tuned_model">): string {
  if (job.status === "succeeded") return `The job has succeeded${job.fine_tuned_model ? `: ${job.fine_tuned_model}` : ""}.`;
  return job.status === "failed" ? `The job has failed${job.error ? `: ${job.error.message}` : "."}` : "The job was cancelled.";
}

export function hasEnded(job: Pick<Job, "status">): boolean {
  return ENDED.has(job.status);
}

/** What may be asked of a job as it stands. */
export function movesOf(job: Job): ("pause" | "resume" | "cancel" | "retry")[] {
  if (hasEnded(job)) return job.status_details.on_cluster ? [] : ["retry"];
  if (job.status === "paused") return ["resume", "cancel"];
  return job.status === "validating_files" ? ["cancel"] : ["pause", "cancel"];
}

/** The phases of a run, and which of them a job is in. */
export const PHASES = ["read", "score", "train", "evaluate"] as const;

/** What `bco evaluate` adds where a version has a gate. */
const OF_EVALUATION = ["votes", "intervals", "answers", "judge"];

export function phaseOf(job: Job): { name: string; is: "done" | "current" | "ahead" }[] {
  const said = job.status_details.phase ?? "";
  const phase = OF_EVALUATION.includes(said) ? "evaluate" : said;
  const at = PHASES.findIndex((name) => name === phase);
  return PHASES.map((name, place) => {
    if (job.status === "succeeded" || place < at) return { name, is: "done" };
    return { name, is: place === at ? "current" : "ahead" };
  });
}
