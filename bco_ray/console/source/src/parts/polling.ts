/** Looking again and again: not in a hidden tab, more rarely after errors, and not for what will not be there. */

import { ApiError } from "../api.ts";

const LONGEST_SECONDS = 60;
/** Of the 4xx those that pass by themselves. */
const PASSING = [408, 425, 429];

/** Seconds to the next look after so many failures in a row, the last of them `error`; null: there is no use in one. */
export function pauseAfter(error: unknown, failures: number, usual: number | null): number | null {
  if (usual === null) return null;
  const [status, asked] = error instanceof ApiError ? [error.status, error.retryAfter] : [0, null];
  if (status >= 400 && status < 500 && !PASSING.includes(status)) return null;
  return Math.max(asked ?? 0, Math.min(LONGEST_SECONDS, usual * 2 ** Math.min(failures, 10)));
}

type Tab = EventTarget & { readonly hidden: boolean };

/** Look now, and then as many seconds after each look as it says (null: no more); returns how to stop. */
export function poll(look: (signal: AbortSignal) => Promise<number | null>, tab: Tab = document): () => void {
  const leaving = new AbortController();
  let timer: ReturnType<typeof setTimeout> | undefined;
  const now = async () => {
    const seconds = await look(leaving.signal);
    if (seconds !== null && !leaving.signal.aborted) timer = setTimeout(whenSeen, seconds * 1000);
  };
  const whenSeen = () => {
    if (!tab.hidden) return void now();
    tab.addEventListener("visibilitychange", whenSeen, { once: true, signal: leaving.signal });
  };
  void now();
  return () => {
    leaving.abort();
    clearTimeout(timer);
  };
}
