/** What a job leaves behind while it runs, followed: its events and its log. */

import { useEffect, useRef, useState } from "preact/hooks";
import { bytes, get, wasAborted, withQuery, type Page } from "../api.ts";
import { merged } from "./curves.ts";
import type { JobEvent } from "./types.ts";

const PAGE = 100;
const MOST_PAGES = 30;
const SHOWN_CHARACTERS = 200_000;

/** All events, the newest first; looked for again whenever `turn` changes. */
export function useEvents(jobId: string, turn: unknown): JobEvent[] {
  const [events, setEvents] = useState<JobEvent[]>([]);
  const known = useRef<JobEvent[]>([]);
  useEffect(() => {
    const leaving = new AbortController();
    const look = async () => {
      const found = await since(jobId, known.current, leaving.signal);
      known.current = found;
      setEvents(found);
    };
    look().catch((error) => {
      if (!wasAborted(error)) console.warn(error); // the job's own look tells what is wrong
    });
    return () => leaving.abort();
  }, [jobId, turn]);
  return events;
}

async function since(jobId: string, known: JobEvent[], signal: AbortSignal): Promise<JobEvent[]> {
  const path = `/v1/fine_tuning/jobs/${encodeURIComponent(jobId)}/events`;
  const fresh: JobEvent[] = [];
  for (let pages = 0; pages < MOST_PAGES; pages += 1) {
    const after = fresh.at(-1)?.id;
    const page = await get<Page<JobEvent>>(withQuery(path, { limit: PAGE, ...(after && { after }) }), signal);
    const { events, whole } = merged(known, page.data);
    fresh.push(...events.slice(0, events.length - known.length));
    if (whole || !page.has_more) break;
  }
  return [...fresh, ...known];
}

/** The end of a log, as far as it has been written. */
export function useLog(jobId: string, turn: unknown): string {
  const [text, setText] = useState("");
  const read = useRef({ offset: 0, decoder: new TextDecoder() });
  useEffect(() => {
    const leaving = new AbortController();
    const look = async () => {
      const { offset, decoder } = read.current;
      const path = `/v1/fine_tuning/jobs/${encodeURIComponent(jobId)}/logs`;
      const piece = await bytes(withQuery(path, { offset }), leaving.signal);
      if (leaving.signal.aborted || offset !== read.current.offset) return;
      read.current.offset += piece.length;
      const more = decoder.decode(piece, { stream: true });
      if (more) setText((before) => (before + more).slice(-SHOWN_CHARACTERS));
    };
    look().catch((error) => {
      if (!wasAborted(error)) console.warn(error);
    });
    return () => leaving.abort();
  }, [jobId, turn]);
  return text;
}
