import { beforeEach, expect, test, vi } from "vitest";
import { key, keepKey, keepTheme, onForget, signOut, voter } from "./session.ts";

class Stored {
  private readonly values = new Map<string, string>();
  get length() {
    return this.values.size;
  }
  getItem = (name: string) => this.values.get(name) ?? null;
  setItem = (name: string, value: string) => void this.values.set(name, value);
  removeItem = (name: string) => void this.values.delete(name);
}

beforeEach(() => {
  for (const name of ["localStorage", "sessionStorage"]) vi.stubGlobal(name, new Stored());
  vi.stubGlobal("document", { documentElement: { dataset: {} } });
});

test("a key is kept for the tab, or in the browser", () => {
  keepKey("sk-1", false);
  expect([key(), sessionStorage.length, localStorage.length]).toEqual(["sk-1", 1, 0]);
  keepKey("sk-2", true);
  expect([key(), sessionStorage.length, localStorage.length]).toEqual(["sk-2", 0, 1]);
});

test("who signs out leaves nothing behind", () => {
  const forgotten: string[] = [];
  onForget(() => forgotten.push("what was said"));
  keepKey("sk-1", true);
  keepTheme("dark");
  const before = voter();
  expect(voter()).toBe(before);
  signOut();
  expect([key(), localStorage.length, sessionStorage.length]).toEqual([null, 0, 0]);
  expect(forgotten).toEqual(["what was said"]);
  expect(document.documentElement.dataset.theme).toBeUndefined();
  expect(voter()).not.toBe(before);
});
