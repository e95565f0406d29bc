/** What can be asked of a job: each is asked about first, and its answer is shown at once. */

import { useEffect, useRef, useState } from "preact/hooks";
import { post } from "../api.ts";
import { Confirm, focusClicked } from "../parts/dialog.tsx";
import { Intents } from "../parts/intents.ts";
import { say } from "../parts/live.tsx";
import { go } from "../route.ts";
import { onForget } from "../session.ts";
import { movesOf, type Job } from "./types.ts";

type Verb = "pause" | "resume" | "cancel" | "retry";

const MOVES: Record<Verb, { name: string; ask: string; means: string }> = {
  pause: { name: "Pause", ask: "Pause this job?", means: "It stops after a checkpoint, and its cluster is free until it is resumed." },
  resume: { name: "Resume", ask: "Resume this job?", means: "It goes on from its newest checkpoint." },
  cancel: { name: "Cancel", ask: "Cancel this job?", means: "It ends after a checkpoint, from which it can be retried as a new job." },
  retry: { name: "Retry", ask: "Train again?", means: "A new job goes on from the newest checkpoint, with the same data and model." },
};

/** Outlives the page: after no answer came one may look at the jobs first, and try again then. */
const retries = new Intents();
onForget(() => retries.clear());

async function retry(job: Job, path: string): Promise<Job> {
  const made = await post<Job>(`${path}/retry`, {}, { "idempotency-key": retries.key(job.id) });
  retries.done(job.id);
  return made;
}

export function Moves({ job, path, onMoved }: { job: Job; path: string; onMoved: (job: Job) => void }) {
  const [asked, setAsked] = useState<Verb | null>(null);
  const group = useRef<HTMLDivElement>(null);
  const opener = useRef<HTMLElement | null>(null);
  useEffect(() => {
    if (asked || !opener.current || opener.current.isConnected) return;
    opener.current = null; // what was pressed is gone, and with it the focus
    if (document.activeElement === document.body) (group.current?.querySelector("button") ?? group.current)?.focus();
  });
  const move = async (verb: Verb) => {
    const moved = verb === "retry" ? await retry(job, path) : await post<Job>(`${path}/${verb}`, {});
    if (verb === "retry") {
      say(`The new job is ${moved.id}.`);
      return go("jobs", moved.id);
    }
    say(`${MOVES[verb].name}: the job is ${moved.status}.`);
    onMoved(moved);
  };
  return (
    <div class="actions" ref={group} role="group" aria-label="What can be done" tabIndex={-1}>
      {movesOf(job).map((verb) => (
        <button
          key={verb}
          type="button"
          class={verb === "cancel" ? "danger" : ""}
          onClick={(event) => {
            focusClicked(event);
            opener.current = event.currentTarget;
            setAsked(verb);
          }}
        >
          {MOVES[verb].name}
        </button>
      ))}
      {asked && (
        <Confirm
          title={MOVES[asked].ask}
          yes={`Yes, ${asked}`}
          danger={asked === "cancel"}
          onYes={() => move(asked)}
          onClose={() => setAsked(null)}
        >
          <p>{MOVES[asked].means}</p>
        </Confirm>
      )}
    </div>
  );
}
