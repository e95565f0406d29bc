import { expect, test } from "vitest";
import { addressOf, own, partsOf } from "./route.ts";

test("an address and back", () => {
  expect(partsOf(addressOf("models", "a/b %"))).toEqual(["models", "a/b %"]);
  expect(partsOf("")).toEqual(["chat"]);
  expect(partsOf("#/jobs/%E0%A4%A")).toEqual(["jobs", "%E0%A4%A"]);
});

test("what every object has is nobody's own", () => {
  expect(["chat", "constructor", "__proto__", "toString"].map((name) => own({ chat: 1 }, name))).toEqual([1, undefined, undefined, undefined]);
});
