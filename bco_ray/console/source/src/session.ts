/** What this browser remembers: the key, the theme, and a name for its votes. */

const KEY = "bco.key";
const THEME = "bco.theme";
const VOTER = "bco.voter";

/** An API key; none is needed while the server has none. */
export function key(): string | null {
  return sessionStorage.getItem(KEY) ?? localStorage.getItem(KEY);
}

/** For this tab, or until it is forgotten. */
export function keepKey(value: string, remember: boolean): void {
  forgetKey();
  (remember ? localStorage : sessionStorage).setItem(KEY, value);
}

export function forgetKey(): void {
  sessionStorage.removeItem(KEY);
  localStorage.removeItem(KEY);
}

const forgetting: (() => void)[] = [];

/** Called when somebody signs out, by whatever keeps what they said or saw. */
export function onForget(forget: () => void): void {
  forgetting.push(forget);
}

/** Nothing stays of whoever was here: neither in this page nor in the browser. */
export function signOut(): void {
  for (const kept of [KEY, THEME, VOTER]) {
    sessionStorage.removeItem(kept);
    localStorage.removeItem(kept);
  }
  for (const forget of forgetting) forget();
  showTheme();
}

/** Tells when another tab has signed out, where the key was this one's too; returns how to stop. */
export function onSignedOutElsewhere(tell: () => void): () => void {
  const look = (event: StorageEvent) => {
    if (event.key === KEY && event.newValue === null && key() === null) tell();
  };
  addEventListener("storage", look);
  return () => removeEventListener("storage", look);
}

export type Theme = "auto" | "light" | "dark";
export const THEMES: readonly Theme[] = ["auto", "light", "dark"];

export function theme(): Theme {
  const kept = localStorage.getItem(THEME);
  return THEMES.find((one) => one === kept) ?? "auto";
}

export function keepTheme(value: Theme): void {
  localStorage.setItem(THEME, value);
  showTheme(value);
}

export function showTheme(value: Theme = theme()): void {
  if (value === "auto") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = value;
}

/** The last vote of a voter on an answer counts, so every browser is a voter of its own. */
export function voter(): string {
  let name = localStorage.getItem(VOTER);
  if (!name) {
    name = `console-${randomId()}`;
    localStorage.setItem(VOTER, name);
  }
  return name;
}

export function randomId(): string {
  return Array.from(crypto.getRandomValues(new Uint8Array(12)), (byte) => byte.toString(16).padStart(2, "0")).join("");
}
