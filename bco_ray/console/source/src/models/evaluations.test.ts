import { expect, test } from "vitest";
import { estimateText, rowsOf, type Evaluation } from "./evaluations.ts";

const at = (value: number | null, low: number | null = null, high: number | null = null) => ({ value, low, high });

const evaluation: Evaluation = {
  id: "bot/2/1",
  at: 1_767_225_600,
  confidence: 0.95,
  votes: { rows: 40, ups: 24, prompts: 18, metrics: { auc: at(0.7, 0.6, 0.8), margin: at(null) } },
  answers: 16,
  answer_tokens: at(12, 10, 14),
  kl_on_policy: at(2.5, 2, 3),
  opponents: [
    {
      model: "bot/1", role: "live", difference: { auc: at(0.1, -0.02, 0.2), margin: at(null) },
      win_rate: { judge: "rule: shorter", wins: 8, ties: 3, losses: 5, undecided: 0, rate: at(0.6, 0.45, 0.74) },
    },
  ],
  regression: { prompts: 2, failed: ["hours"] },
  notes: [],
};

test("a number and where it lies", () => {
  expect(estimateText(at(0.7, 0.6123, 0.8))).toBe("0.7 (0.612 to 0.8)");
  expect(estimateText(at(0.1, -0.02, 0.2), true)).toBe("+0.1 (−0.02 to +0.2)");
  expect([estimateText(at(3)), estimateText(at(null))]).toEqual(["3", "–"]);
});

test("versions side by side: what was found, what was never looked for, and what could not be read", () => {
  const rows = Object.fromEntries(rowsOf([evaluation, null, "loading …"]).map((row) => [row.title, row.cells]));
  expect(rows.Evaluated!.slice(1)).toEqual(["never", "loading …"]);
  expect(rows.Evaluated![0]).toContain("2026");
  expect(rows["Intervals hold with"]).toEqual(["95 %", "–", "–"]);
  expect(rows["Held-out votes"]).toEqual(["40, 60 % up", "–", "–"]);
  expect(rows.auc).toEqual(["0.7 (0.6 to 0.8)", "–", "–"]);
  expect(rows.Compared![0]).toBe("with bot/1: wins 0.6 (0.45 to 0.74) of 16 by rule: shorter, auc +0.1 (−0.02 to +0.2)");
  expect(rows["Nats from the reference, by its own answers"]).toEqual(["2.5 (2 to 3)", "–", "–"]);
  expect(rows["Must-pass prompts"]![0]).toBe("1 of 2; failed: hours");
  expect(rows.Notes).toBeUndefined();
  expect(rowsOf([null]).map((row) => row.title)).toEqual(["Evaluated"]);
});
