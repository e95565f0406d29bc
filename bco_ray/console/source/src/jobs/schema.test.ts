import { expect, test } from "vitest";
import { groupOf, inputsOf, read, readAll, type Schema } from "./schema.ts";

const SCHEMA: Schema = {
  $defs: {
    Zero: { type: "object", description: "How  it\nis `shared`.", properties: { stage: { enum: [0, 1], default: 1 } } },
    Lora: { type: "object", properties: { type: { const: "lora", default: "lora", type: "string" }, r: { type: "integer", minimum: 1 } } },
  },
  properties: {
    rate: { anyOf: [{ type: "number", exclusiveMinimum: 0 }, { const: "auto", type: "string" }], default: "auto" },
    epochs: { type: "integer", minimum: 1, maximum: 9, default: 1 },
    suffix: { anyOf: [{ type: "string", pattern: "^[a-z]+$" }, { type: "null" }], default: null },
    workers: { anyOf: [{ type: "integer" }, { type: "array" }], default: 2 },
    thrifty: { type: "boolean" },
    checkpointing: { enum: ["auto", true, false], default: "auto" },
    zero: { $ref: "#/$defs/Zero" },
    adapter: { anyOf: [{ $ref: "#/$defs/Lora" }, { type: "null" }], default: null },
  },
};
const group = groupOf("training", SCHEMA);
const input = (path: string) => inputsOf(group).find((one) => one.path.join(".") === path)!;

test("a schema becomes inputs and groups of inputs", () => {
  expect(group.inputs.map((one) => [one.name, one.kind, one.otherwise])).toEqual([
    ["rate", "number", "auto"],
    ["epochs", "integer", "1"],
    ["suffix", "text", "none"],
    ["workers", "json", "2"],
    ["thrifty", "choice", ""],
    ["checkpointing", "choice", "auto"],
  ]);
  expect(group.groups.map((one) => [one.name, one.help, inputsOf(one).length])).toEqual([
    ["zero", "How it is shared.", 1],
    ["adapter", "Left empty: none.", 2],
  ]);
  expect(input("adapter.type").choices).toEqual(["lora"]);
});

test("what is typed becomes JSON of its kind", () => {
  expect(read(input("rate"), " 1e-5 ")).toBe(1e-5);
  expect(read(input("rate"), "auto")).toBe("auto");
  expect(read(input("workers"), "[1, 8]")).toEqual([1, 8]);
  expect(read(input("workers"), "4")).toBe(4);
  expect(read(input("thrifty"), "true")).toBe(true);
  expect(read(input("checkpointing"), "false")).toBe(false);
  expect(read(input("zero.stage"), "0")).toBe(0);
  expect(read(input("suffix"), "")).toBeUndefined();
});

test("what does not fit says what would", () => {
  expect(() => read(input("rate"), "0")).toThrow("A number, above 0, or auto.");
  expect(() => read(input("epochs"), "1.5")).toThrow("A whole number, at least 1 and at most 9.");
  expect(() => read(input("workers"), "[1,")).toThrow("Not valid JSON");
  expect(() => read(input("suffix"), "A b")).toThrow("Letters");
});

test("only what was typed is sent", () => {
  expect(readAll(group, { rate: "", "zero.stage": "0", "adapter.type": "lora", epochs: "x" })).toEqual({
    value: { zero: { stage: 0 }, adapter: { type: "lora" } },
    wrong: { epochs: "A whole number, at least 1 and at most 9." },
  });
});
