import { expect, test } from "vitest";
import { budgetText, endText, movesOf, phaseOf, spentText, type Job } from "./types.ts";

const job = (status: string, details: Partial<Job["status_details"]> = {}): Job =>
  ({ status, status_details: { phase: null, on_cluster: false, ...details } }) as Job;

test("what may be asked of a job", () => {
  expect(movesOf(job("validating_files"))).toEqual(["cancel"]);
  expect(movesOf(job("running"))).toEqual(["pause", "cancel"]);
  expect(movesOf(job("paused"))).toEqual(["resume", "cancel"]);
  expect(movesOf(job("failed"))).toEqual(["retry"]);
  expect(movesOf(job("cancelled", { on_cluster: true }))).toEqual([]);
});

test("phases", () => {
  expect(phaseOf(job("running", { phase: "train" })).map((phase) => phase.is)).toEqual(["done", "done", "current", "ahead"]);
  expect(phaseOf(job("succeeded", { phase: "evaluate" })).every((phase) => phase.is === "done")).toBe(true);
  expect(phaseOf(job("queued")).every((phase) => phase.is === "ahead")).toBe(true);
});

test("what was spent, in units of its size", () => {
  expect(spentText({ hours: 4e-4, gpu_hours: 1e-5, tokens: 1200 })).toBe("1 s, less than 1 s of GPUs, 1,200 tokens");
  expect(spentText({ hours: 2.5, gpu_hours: 20, tokens: 1 })).toBe("2 h 30 min, 20 h 0 min of GPUs, 1 token");
  expect(spentText({ hours: 0.02, gpu_hours: 0 })).toBe("1 min 12 s, 0 tokens");
});

test("what may be spent", () => {
  const none = { hours: null, gpu_hours: null, tokens: null, deadline: null };
  expect(budgetText({ ...none, hours: 2, tokens: 1000 })).toBe("2 h 0 min, 1,000 tokens");
  expect(budgetText({ ...none, gpu_hours: 0.5, deadline: 1767225600 })).toMatch(/^30 min 0 s of GPUs, until .*202[56]/);
});

test("how a job ended", () => {
  const ended = { status: "succeeded", error: null, fine_tuned_model: "bot/3" };
  expect(endText(ended)).toBe("The job has succeeded: bot/3.");
  expect(endText({ ...ended, status: "failed", error: { code: "x", message: "No room." } })).toBe("The job has failed: No room.");
  expect(endText({ ...ended, status: "cancelled" })).toBe("The job was cancelled.");
});
