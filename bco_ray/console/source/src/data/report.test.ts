import { expect, test } from "vitest";
import { busiest, overTime, reasonsOf, shiftOf, type Report } from "./report.ts";

test("drops, the most frequent first", () => {
  expect(reasonsOf({ drops: { b: 2, a: 2, c: 9 } } as unknown as Report)).toEqual([["c", 9], ["a", 2], ["b", 2]]);
});

test("a share over months, weeks or days; what has no date is left out", () => {
  expect(overTime([{ key: "2026-01-01", up_rate: 1 }, { key: "2026-01-08", up_rate: 0 }])[0]).toEqual([1767225600, 1767830400]);
  expect(overTime([{ key: "(none)", up_rate: 0.1 }, { key: "2026-01", up_rate: 0.5 }, { key: "2026-02", up_rate: null }])).toEqual([
    [1767225600, 1769904000],
    [0.5, null],
  ]);
});

test("the shift in a sentence", () => {
  expect(shiftOf(null, "running")).toBe("Known once the job has succeeded.");
  expect(shiftOf(null, "succeeded")).toContain("is not there any more");
  expect([shiftOf(null, "failed"), shiftOf(null, "cancelled")]).toEqual([
    "Not known: the job failed before it had made a version, which says it.",
    "Not known: the job was cancelled before it had made a version, which says it.",
  ]);
  expect(shiftOf({ auc: null, reason: "Only one class." }, "succeeded")).toBe("Only one class.");
  expect(shiftOf({ auc: 0.71, auc_low: 0.65, auc_high: 0.77, applied: true, ess_fraction: 0.6 }, "succeeded")).toBe(
    "A classifier tells the prompts of ups and downs apart with AUC 0.71 (0.65 to 0.77); 0.5 is chance. Rows are weighted against it, which leaves 60 % of their information.",
  );
});

test("the busiest users", () => {
  expect(busiest({ "10": 0.9, "1": 0.3, "2": null, "50": 1 }, 12)).toEqual([[1, 0.3], [10, 0.9]]);
});
