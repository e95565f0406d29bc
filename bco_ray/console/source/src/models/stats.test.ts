import { expect, test } from "vitest";
import { interval, lastMove, metricsOf, rate, said, shareOf, type Model, type Version, gateText, trialText, votesCast } from "./stats.ts";

const version = (number: number, evaluation: Record<string, unknown> | null = null) => ({ version: number, evaluation }) as Version;
const model = (aliases: Record<string, number>, percent?: number) =>
  ({ versions: [1, 2, 3].map((one) => version(one)), aliases, canary: percent === undefined ? null : { alias: "candidate", percent } }) as Model;

test("an interval is the one of the textbook", () => {
  const [low, high] = interval(8, 10);
  expect([low.toFixed(3), high.toFixed(3)]).toEqual(["0.490", "0.943"]);
  expect(interval(0, 0)).toEqual([0, 1]);
  expect(interval(5, 5)[1]).toBe(1);
});

test("the share is of people, without what they only compared; and all votes are told", () => {
  const thumbs = { id: "m/1", up: 9000, down: 480, side_by_side: 40, people: { up: 720, down: 480 } };
  expect(rate(thumbs)).toBe("60 % of 1,200 (57 to 63 %)");
  expect(votesCast(thumbs)).toBe("9,000 up, 480 down, 40 of them side by side");
  expect(votesCast({ ...thumbs, side_by_side: 0 })).toBe("9,000 up, 480 down");
  expect(rate({ ...thumbs, people: { up: 999, down: 1 } })).toBe(">99 % of 1,000 (99 to 100 %)");
  expect([rate(undefined), rate(undefined, "loading"), rate(thumbs, "failed")]).toEqual(["nobody", "…", "not known"]);
  expect([votesCast(undefined), votesCast(undefined, "loading"), votesCast(thumbs, "failed")]).toEqual(["none", "…", "not known"]);
});

test("metrics of several versions", () => {
  expect(metricsOf([version(2, { eval_auc: 0.8, note: "x" }), version(1, { eval_auc: 0.7, eval_kl: 1 }), version(0)])).toEqual(["eval_auc", "eval_kl"]);
});

test("who answers how much", () => {
  expect([1, 2, 3].map((one) => shareOf(model({ prod: 1, candidate: 2 }, 10), one))).toEqual([90, 10, null]);
  expect([1, 2, 3].map((one) => shareOf(model({}), one))).toEqual([null, null, 100]);
  expect(shareOf(model({ prod: 2, candidate: 2 }, 30), 2)).toBe(100);
});

test("a version whose gate is shut answers for the bare name only if it is prod", () => {
  const shut = (...numbers: number[]) => {
    const gate = (one: Version) => (numbers.includes(one.version) ? { passes: false, reasons: ["auc"] } : { passes: true, reasons: [] });
    return (aliases: Record<string, number>) => ({ ...model(aliases), versions: model({}).versions.map((one) => ({ ...one, gate: gate(one) })) });
  };
  const shares = (of: Model) => [1, 2, 3].map((one) => shareOf(of, one));
  expect(shares(shut(3)({}))).toEqual([null, 100, null]);
  expect(shares(shut(1, 2, 3)({}))).toEqual([null, null, null]);
  const tried = { ...shut(1, 2, 3)({ candidate: 2 }), canary: { alias: "candidate", percent: 10 } };
  expect(shares(tried)).toEqual([null, 10, null]);
  expect(shares(shut(3)({ prod: 3 }))).toEqual([null, null, 100]);
});

test("moves", () => {
  expect(said({ alias: "prod", version: 2, was: 1 })).toBe("prod → 2 (was 1)");
  expect(said({ alias: "prod", version: 1, was: 2, rollback: true })).toBe("prod → 1 (was 2), taken back");
  expect(said({ canary: 5, was: 0, at: 1 })).toBe("canary 5 %");
  expect(said({ canary: 0, was: 5, because: "worse" })).toBe("canary 0 %, because worse");
  expect(said({ alias: "prod", version: 2, was: 1, forced: ["auc"] })).toBe("prod → 2 (was 1), forced");
});

test("the newest move is told", () => {
  expect(lastMove({ ...model({}), history: [{ alias: "prod", version: 1 }, { canary: 5 }] })).toBe("canary 5 %");
  expect(lastMove({ ...model({}), history: [] })).toBe("Nothing has moved");
});

test("what a gate says", () => {
  const version = { ...model({}).versions[0]! };
  expect(gateText(version)).toBe("–");
  expect(gateText({ ...version, gate: { passes: true, reasons: [] } })).toBe("passes");
  expect(gateText({ ...version, gate: { passes: false, reasons: ["auc 0.4 is below 0.5", "no evaluation"] } })).toBe("auc 0.4 is below 0.5; no evaluation");
});

test("a canary so far", () => {
  const trial = {
    candidate: { model: "bot/2", ups: 6, downs: 2 },
    prod: { model: "bot/1", ups: 10, downs: 9 },
    difference: { low: -0.12, high: 0.41 },
    confidence: 0.95,
    automatic: true,
  };
  expect(trialText(trial)).toBe(
    "bot/2: 6 up, 2 down; bot/1: 10 up, 9 down; each person once. The difference lies between −12 and +41 points (95 %), however often you look. The server promotes or ends it by that.",
  );
});
