import { expect, test } from "vitest";
import { newest, PANELS, rowsOf, seriesOf } from "./curves.ts";
import type { JobEvent } from "./types.ts";

const event = (id: string, data: Record<string, unknown>): JobEvent => ({
  id, created_at: 1, level: "info", message: "", type: "step" in data ? "metrics" : "message", data,
});

test("steps come in order, each as it was done last", () => {
  const events = [
    event("4", { step: 1, train_loss: 0.4, auc: null }),
    event("3", { step: 2, train_loss: 0.3 }),
    event("2", { step: 1, train_loss: 0.9, auc: 0.5 }),
    event("1", {}),
    event("0", { step: 0, loss: 0.7, auc: 0.6 }),
  ];
  const rows = rowsOf(events);
  expect(seriesOf(PANELS[0]!, rows)).toEqual([[1, 2, 3], [0.7, 0.4, 0.3]]);
  expect(seriesOf(PANELS[3]!, rows)[1]).toEqual([0.6, null, null]);
  expect(newest(PANELS[3]!, rows)).toEqual([{ name: "AUC", value: 0.6 }]);
  expect(newest(PANELS[1]!, rows)).toEqual([]);
});
