import { expect, test } from "vitest";
import { count, duration, number, percent, plain, size } from "./format.ts";

test("numbers", () => {
  expect([number(1234567), number(0.123456), number(-0.5), number(1e-7), number(Number.NaN), number(null)]).toEqual([
    "1,234,567", "0.1235", "-0.5", "1.00e-7", "–", "–",
  ]);
});

test("times and sizes", () => {
  expect([duration(59.6), duration(61), duration(3725), duration(null)]).toEqual(["1 min 0 s", "1 min 1 s", "1 h 2 min", "–"]);
  expect([size(0), size(1023), size(1024), size(3.5 * 2 ** 30)]).toEqual(["0 B", "1020 B", "1 KiB", "3.5 GiB"]);
});

test("what is not all is not 100 %, and what is not nothing is not 0 %", () => {
  expect([200 / 201, 0.994, 1, 0, 1 / 1000, 0.006].map((share) => percent(share))).toEqual([">99 %", "99 %", "100 %", "0 %", "<1 %", "1 %"]);
  expect([0.9996, 0.9994, 1, 0.0004, 0].map((share) => percent(share, 1))).toEqual([">99.9 %", "99.9 %", "100.0 %", "<0.1 %", "0.0 %"]);
});

test("words", () => {
  expect([count(1, "row"), count(1200, "row"), percent(0.1234, 1), plain({ a: 1 }), plain("")]).toEqual([
    "1 row", "1,200 rows", "12.3 %", '{"a":1}', "–",
  ]);
});
