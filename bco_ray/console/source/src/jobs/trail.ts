/** What a job leaves behind while it runs, followed: its events and its log. */

import { useEffect, useRef, useState } from "preact/hooks";
import { get, logPieces, withQuery, type Page } from "../api.ts";
import { Follower, type Followed, type Look } from "./following.ts";
import type { JobEvent } from "./types.ts";

const PAGE = 100;
const MOST_PAGES = 30;
const SHOWN_CHARACTERS = 200_000;

export interface Log {
  /** Null: not asked for yet. */
  offset: number | null;
  text: string;
  decoder: TextDecoder;
}

/** All events, the newest first; looked for again whenever `turn` changes. */
export function useEvents(jobId: string, turn: unknown): Followed<JobEvent[]> {
  return useFollowed<JobEvent[]>(jobId, turn, () => [], eventsLook(`${pathOf(jobId)}/events`));
}

/** The end of a log, as far as it has been written. */
export function useLog(jobId: string, turn: unknown): Followed<Log> {
  return useFollowed<Log>(jobId, turn, () => ({ offset: null, text: "", decoder: new TextDecoder() }), logLook(`${pathOf(jobId)}/logs`));
}

/** Only those that are newer than the newest that is known. */
export function eventsLook(path: string, fetch: (path: string, signal: AbortSignal) => Promise<Page<JobEvent>> = get): Look<JobEvent[]> {
  return async (known, tell, signal) => {
    const before = known[0]?.id;
    const fresh: JobEvent[] = [];
    for (let pages = 0; pages < MOST_PAGES; pages += 1) {
      const after = fresh.at(-1)?.id;
      const page = await fetch(withQuery(path, { limit: PAGE, ...(before && { before }), ...(after && { after }) }), signal);
      fresh.push(...page.data);
      if (!page.has_more || !page.data.length) break;
    }
    if (fresh.length) tell([...fresh, ...known]);
  };
}

/** Of a log that is long already its end, and from there on what was added. */
export function logLook(path: string, pieces: typeof logPieces = logPieces): Look<Log> {
  return async (known, tell, signal) => {
    let { offset, text } = known;
    for await (const { at, piece } of pieces(withQuery(path, { offset: offset ?? -SHOWN_CHARACTERS }), signal)) {
      const more = known.decoder.decode(piece, { stream: true });
      const cut = offset === null && at > 0;
      text = (cut ? more.slice(more.indexOf("\n") + 1) : text + more).slice(-SHOWN_CHARACTERS);
      offset = at + piece.length;
      tell({ ...known, offset, text });
    }
    if (offset === null) tell({ ...known, offset: 0 });
  };
}

function pathOf(jobId: string): string {
  return `/v1/fine_tuning/jobs/${encodeURIComponent(jobId)}`;
}

function useFollowed<T>(jobId: string, turn: unknown, start: () => T, look: Look<T>): Followed<T> {
  const [state, setState] = useState<Followed<T>>(() => ({ known: start(), looked: false, error: null }));
  const follower = useRef<Follower<T> | null>(null);
  useEffect(() => {
    const begun = { known: start(), looked: false, error: null };
    setState(begun);
    const one = new Follower(begun, look, setState);
    follower.current = one;
    return () => one.leave();
  }, [jobId]);
  useEffect(() => follower.current?.ask(), [jobId, turn]);
  return state;
}
