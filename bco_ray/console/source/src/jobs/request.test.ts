import { expect, test } from "vitest";
import { ApiError } from "../api.ts";
import { bodyOf, formOf, placeOf, type Schemas } from "./request.ts";

const SCHEMAS: Schemas = {
  methods: ["bco"],
  request: {
    $defs: {
      Hyperparameters: { properties: { beta: { type: "number" } } },
      Budget: { properties: { hours: { type: "number" } } },
    },
    properties: { model: {}, training_file: {}, method: {}, validation_file: {}, budget: {}, spec: {}, seed: { type: "integer" } },
  },
  spec: { $defs: { Training: { properties: { max_length: { type: "integer" } } } }, properties: { training: { $ref: "#/$defs/Training" } } },
};

test("a filled form is a request", () => {
  const form = formOf(SCHEMAS);
  expect(form.rest.inputs.map((input) => input.name)).toEqual(["seed"]);
  const typed = { "hyperparameters.beta": "0.2", "budget.hours": "2", seed: "7", "spec.training.max_length": "64" };
  expect(bodyOf({ model: "bot@prod ", training_file: "feedback", method: "bco" }, form, typed)).toEqual({
    body: {
      model: "bot@prod",
      training_file: "feedback",
      method: { type: "bco", bco: { hyperparameters: { beta: 0.2 } } },
      budget: { hours: 2 },
      seed: 7,
      spec: { training: { max_length: 64 } },
    },
    wrong: {},
  });
  expect(bodyOf({ model: "", training_file: "f", method: "bco" }, form, {})).toEqual({
    body: { model: "", training_file: "f", method: { type: "bco" } },
    wrong: { model: "Name a model." },
  });
});

test("a refusal is shown at the field that it names", () => {
  const form = formOf(SCHEMAS);
  const at = (param: string | null, status = 400) => placeOf(new ApiError(status, "No.", null, param), form);
  expect(["model", "training_file", "seed", "budget.hours", "spec.training.max_length"].map((param) => at(param))).toEqual([
    "model", "training_file", "seed", "budget.hours", "spec.training.max_length",
  ]);
  expect(at("method.bco.hyperparameters.beta")).toBe("hyperparameters.beta");
  expect(at("hyperparameters.beta.constrained-float")).toBe("hyperparameters.beta");
  expect(at("method")).toBe("method");
  expect(at("spec.training")).toBe("spec.training");
  expect(at("spec.training.deepspeed.nvme_path")).toBe("spec.training");
  expect([at("spec.unheard.of"), at(null), placeOf(new Error("x"), form)]).toEqual([null, null, null]);
  expect(at(null, 404)).toBe("training_file");
});
