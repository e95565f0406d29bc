import { expect, test } from "vitest";
import { interval, metricsOf, rate, said, shareOf, type Model, type Version } from "./stats.ts";

const version = (number: number, evaluation: Record<string, unknown> | null = null) => ({ version: number, evaluation }) as Version;
const model = (aliases: Record<string, number>, percent?: number) =>
  ({ versions: [1, 2, 3].map((one) => version(one)), aliases, canary: percent === undefined ? null : { alias: "candidate", percent } }) as Model;

test("an interval is the one of the textbook", () => {
  const [low, high] = interval(8, 10);
  expect([low.toFixed(3), high.toFixed(3)]).toEqual(["0.490", "0.943"]);
  expect(interval(0, 0)).toEqual([0, 1]);
  expect(interval(5, 5)[1]).toBe(1);
  expect(rate({ id: "m/1", up: 720, down: 480 })).toBe("60 % of 1,200 (57 to 63 %)");
  expect(rate(undefined)).toBe("no votes");
});

test("metrics of several versions", () => {
  expect(metricsOf([version(2, { eval_auc: 0.8, note: "x" }), version(1, { eval_auc: 0.7, eval_kl: 1 }), version(0)])).toEqual(["eval_auc", "eval_kl"]);
});

test("who answers how much", () => {
  expect([1, 2, 3].map((one) => shareOf(model({ prod: 1, candidate: 2 }, 10), one))).toEqual([90, 10, null]);
  expect([1, 2, 3].map((one) => shareOf(model({}), one))).toEqual([null, null, 100]);
  expect(shareOf(model({ prod: 2, candidate: 2 }, 30), 2)).toBe(100);
});

test("moves", () => {
  expect(said({ alias: "prod", version: 2, was: 1 })).toBe("prod → 2 (was 1)");
  expect(said({ alias: "prod", version: 1, was: 2, rollback: true })).toBe("prod → 1 (was 2), taken back");
  expect(said({ percent: 5 })).toBe("canary 5 %");
});
