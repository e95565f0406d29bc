/** Something of the server's, fetched now and again. */

import { useCallback, useEffect, useRef, useState } from "preact/hooks";
import { inWords, wasAborted } from "../api.ts";
import { pauseAfter, poll } from "./polling.ts";

/** Neither `value` nor `error`: it is being asked for. Both: what was known before something went wrong. */
export interface Loaded<T> {
  value: T | null;
  error: string | null;
  again: () => void;
  /** Known from elsewhere, as from the answer to a change. */
  set: (value: T) => void;
}

/** `fetch` is called when `on` changes, and then every so many seconds (`every` of what came last; null: no more). */
export function useLoaded<T>(
  fetch: (signal: AbortSignal) => Promise<T>,
  on: readonly unknown[],
  every: (value: T | null) => number | null = () => null,
): Loaded<T> {
  const [state, setState] = useState<{ value: T | null; error: string | null }>({ value: null, error: null });
  const [turn, setTurn] = useState(0);
  const latest = useRef({ fetch, every, value: null as T | null });
  Object.assign(latest.current, { fetch, every });
  useEffect(() => {
    latest.current.value = null;
    setState({ value: null, error: null });
  }, on);
  useEffect(() => {
    let failures = 0;
    return poll(async (signal) => {
      try {
        const value = await latest.current.fetch(signal);
        if (signal.aborted) return null;
        failures = 0;
        latest.current.value = value;
        setState({ value, error: null });
        return latest.current.every(value);
      } catch (error) {
        if (wasAborted(error) || signal.aborted) return null;
        failures += 1;
        setState((before) => ({ ...before, error: inWords(error) }));
        return pauseAfter(error, failures, latest.current.every(latest.current.value));
      }
    });
  }, [...on, turn]);
  const again = useCallback(() => setTurn((before) => before + 1), []);
  const set = useCallback((value: T) => {
    latest.current.value = value;
    setState({ value, error: null });
    setTurn((before) => before + 1); // what is on its way may be older
  }, []);
  return { ...state, again, set };
}
