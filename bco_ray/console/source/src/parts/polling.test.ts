import { afterEach, beforeEach, expect, test, vi } from "vitest";
import { ApiError } from "../api.ts";
import { pauseAfter, poll } from "./polling.ts";

class Tab extends EventTarget {
  hidden = false;
  turn(hidden: boolean): void {
    this.hidden = hidden;
    this.dispatchEvent(new Event("visibilitychange"));
  }
}

beforeEach(() => void vi.useFakeTimers());
afterEach(() => void vi.useRealTimers());

test("errors are waited out, longer each time; what is not there is not asked for again", () => {
  const gone = new ApiError(404, "No such job.");
  const away = new ApiError(0, "The server does not answer.");
  expect([1, 2, 3, 9].map((failures) => pauseAfter(away, failures, 2))).toEqual([4, 8, 16, 60]);
  expect([400, 401, 403, 404, 410, 422].map((status) => pauseAfter(new ApiError(status, ""), 1, 2))).toEqual(Array(6).fill(null));
  expect(pauseAfter(new ApiError(429, "", null, null, 37), 1, 2)).toBe(37);
  expect(pauseAfter(new ApiError(429, "", null, null, 1), 3, 2)).toBe(16);
  expect(pauseAfter(new ApiError(503, "", null, null, 90), 1, 2)).toBe(90);
  expect(pauseAfter(gone, 1, 2)).toBeNull();
  expect(pauseAfter(away, 1, null)).toBeNull();
});

test("a look follows another at the pace that each says, and the last says so", async () => {
  const paces = [2, 5, null];
  const look = vi.fn(async () => paces.shift() ?? null);
  poll(look, new Tab());
  await vi.advanceTimersByTimeAsync(1999);
  expect(look).toHaveBeenCalledTimes(1);
  await vi.advanceTimersByTimeAsync(1);
  expect(look).toHaveBeenCalledTimes(2);
  await vi.advanceTimersByTimeAsync(60_000);
  expect(look).toHaveBeenCalledTimes(3);
});

test("a hidden tab does not look; as soon as it is seen it does", async () => {
  const tab = new Tab();
  const look = vi.fn(async () => 2);
  const stop = poll(look, tab);
  tab.turn(true);
  await vi.advanceTimersByTimeAsync(600_000);
  expect(look).toHaveBeenCalledTimes(1);
  tab.turn(false);
  expect(look).toHaveBeenCalledTimes(2);
  await vi.advanceTimersByTimeAsync(2000);
  expect(look).toHaveBeenCalledTimes(3);
  stop();
  tab.turn(true);
  tab.turn(false);
  await vi.advanceTimersByTimeAsync(60_000);
  expect(look).toHaveBeenCalledTimes(3);
});
