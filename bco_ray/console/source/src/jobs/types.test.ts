import { expect, test } from "vitest";
import { movesOf, phaseOf, type Job } from "./types.ts";

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
