import { expect, test } from "vitest";
import { Intents } from "./intents.ts";

test("what is wanted has one key until it is done", () => {
  const intents = new Intents();
  const first = intents.key("ftjob-1");
  expect(first).toMatch(/^console-[0-9a-f]{24}$/);
  expect(intents.key("ftjob-1")).toBe(first);
  expect(intents.key("ftjob-2")).not.toBe(first);
  intents.done("ftjob-1");
  const second = intents.key("ftjob-1");
  expect(second).not.toBe(first);
  intents.clear();
  expect(intents.key("ftjob-1")).not.toBe(second);
});

test("who changes their mind has begun anew, also when they change it back", () => {
  const intents = new Intents();
  const up = intents.key("answer", { label: true });
  expect(intents.key("answer", { label: true })).toBe(up);
  const down = intents.key("answer", { label: false });
  expect(new Set([up, down, intents.key("answer", { label: true })]).size).toBe(3);
});
