import { expect, test } from "vitest";
import { addressOf, partsOf } from "./route.ts";

test("an address and back", () => {
  expect(partsOf(addressOf("models", "a/b %"))).toEqual(["models", "a/b %"]);
  expect(partsOf("")).toEqual(["chat"]);
  expect(partsOf("#/jobs/%E0%A4%A")).toEqual(["jobs", "%E0%A4%A"]);
});
