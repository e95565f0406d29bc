/** Something of the server's, fetched now and again. */

import { useCallback, useEffect, useRef, useState } from "preact/hooks";
import { inWords, wasAborted } from "../api.ts";

export interface Loaded<T> {
  value: T | null;
  error: string | null;
  again: () => void;
}

/** `fetch` is called when `on` changes, and then every so many seconds (`every` of what came; null: no more). */
export function useLoaded<T>(
  fetch: (signal: AbortSignal) => Promise<T>,
  on: readonly unknown[],
  every: (value: T | null) => number | null = () => null,
): Loaded<T> {
  const [state, setState] = useState<{ value: T | null; error: string | null }>({ value: null, error: null });
  const [turn, setTurn] = useState(0);
  const latest = useRef({ fetch, every });
  latest.current = { fetch, every };
  useEffect(() => setState({ value: null, error: null }), on);
  useEffect(() => {
    const leaving = new AbortController();
    let timer: ReturnType<typeof setTimeout> | undefined;
    const look = async () => {
      let value: T | null = null;
      try {
        value = await latest.current.fetch(leaving.signal);
        if (leaving.signal.aborted) return;
        setState({ value, error: null });
      } catch (error) {
        if (wasAborted(error) || leaving.signal.aborted) return;
        setState((before) => ({ ...before, error: inWords(error) }));
      }
      const seconds = latest.current.every(value);
      if (seconds !== null) timer = setTimeout(look, seconds * 1000);
    };
    void look();
    return () => {
      leaving.abort();
      clearTimeout(timer);
    };
  }, [...on, turn]);
  const again = useCallback(() => setTurn((before) => before + 1), []);
  return { ...state, again };
}
