/** One job: how far it is, what it is doing, what came of it, and what can be done about it. */

import { useEffect, useLayoutEffect, useMemo, useRef, useState } from "preact/hooks";
import { get, type Page } from "../api.ts";
import { duration, number, plain, time } from "../format.ts";
import { Badge, Facts, Heading, Nothing, Pending, Table, Trouble } from "../parts/basics.tsx";
import { say } from "../parts/live.tsx";
import { useLoaded } from "../parts/loaded.ts";
import { addressOf } from "../route.ts";
import { Curves } from "./chart.tsx";
import { PANELS, rowsOf } from "./curves.ts";
import type { Followed } from "./following.ts";
import { Moves } from "./moves.tsx";
import { useEvents, useLog, type Log } from "./trail.ts";
import { budgetText, endText, hasEnded, phaseOf, spentText, type Checkpoint, type Job, type JobEvent } from "./types.ts";

const EVERY_SECONDS = 2;

export function JobPage({ id }: { id: string }) {
  const path = `/v1/fine_tuning/jobs/${encodeURIComponent(id)}`;
  const alive = (job: Job | null) => !job || !hasEnded(job) || job.status_details.on_cluster;
  const job = useLoaded((signal) => get<Job>(path, signal), [id], (one) => (alive(one) ? EVERY_SECONDS : null));
  const events = useEvents(id, job.value);
  const log = useLog(id, job.value);
  const one = job.value;
  const told = useRef<string | null>(null);
  useEffect(() => {
    if (told.current !== null && told.current !== one?.status && one && hasEnded(one)) say(endText(one));
    told.current = one?.status ?? null;
  }, [one?.status]);
  const moved = (to: Job) => {
    told.current = to.status; // it was told by whoever moved it
    job.set(to);
  };
  return (
    <>
      <p>
        <a href={addressOf("jobs")}>All jobs</a>
      </p>
      <Heading actions={one && <Moves job={one} path={path} onMoved={moved} />}>
        {one?.user_provided_suffix ?? "Job"} <span class="help">{id}</span>
      </Heading>
      <Pending of={job} what="the job" />
      {one && (
        <>
          <Standing job={one} />
          <Metrics events={events.known} />
          <Checkpoints path={path} turn={`${one.status} ${one.status_details.checkpoint_step}`} />
          <Events events={events} />
          <LogView log={log} />
          <details>
            <summary>The whole spec</summary>
            <pre tabIndex={0}>{JSON.stringify(one.spec, null, 2)}</pre>
          </details>
        </>
      )}
    </>
  );
}

function Standing({ job }: { job: Job }) {
  const { percent, eta_seconds, step, total_steps, waiting_for, problem, phase } = job.status_details;
  const running = !hasEnded(job);
  return (
    <section class="card" aria-label="How it stands">
      <p>
        <Badge status={job.status} /> {job.fine_tuned_model && <ResultLink reference={job.fine_tuned_model} />}{" "}
        <a href={addressOf("data", job.id)}>What its log turned out to be</a>
      </p>
      {job.error && <Trouble error={`${job.error.code}: ${job.error.message}`} />}
      {problem && <Trouble error={problem} />}
      <ol class="steps" aria-label="Phases">
        {phaseOf(job).map(({ name, is }) => (
          <li key={name} class={is} aria-current={is === "current" ? "step" : undefined}>
            {is === "done" ? "✓ " : ""}
            {name}
          </li>
        ))}
      </ol>
      {running && phase && percent !== null && (
        <>
          <progress max={100} value={percent} aria-label={`Progress of the phase ${phase}`} />
          <p class="note">
            {phase} {Math.floor(percent)} %{step !== null && `, step ${step} of ${total_steps ?? "?"}`}
            {eta_seconds !== null && job.status === "running" && `, ${duration(eta_seconds)} left`}
          </p>
        </>
      )}
      {running && waiting_for && <p class="note">Waiting for {waiting_for}.</p>}
      <Facts
        facts={[
          ["Model", job.model],
          ["Votes", job.training_file],
          ["Method", job.method.type],
          ["Created", time(job.created_at)],
          ["Started", time(job.started_at)],
          ["Ended", time(job.finished_at)],
          ["Attempt", number(job.attempt)],
          ["Spent", spentText(job.spent)],
          ...(job.budget ? [["May spend", budgetText(job.budget)] as [string, string]] : []),
          ...(job.retried_from ? [["Goes on from", <OtherJob from={job.retried_from} />] as [string, preact.JSX.Element]] : []),
          ...Object.entries(job.metadata).map(([name, value]): [string, string] => [name, value]),
          ...Object.entries(job.evaluation ?? {})
            .filter(([, value]) => typeof value === "number")
            .map(([name, value]): [string, string] => [name, plain(value)]),
        ]}
      />
    </section>
  );
}

function ResultLink({ reference }: { reference: string }) {
  return <a href={addressOf("models", reference.split("/")[0] ?? "")}>{reference}</a>;
}

function OtherJob({ from }: { from: { job: string; step: number | null } }) {
  return (
    <a href={addressOf("jobs", from.job)}>
      {from.job}, {from.step === null ? "from the beginning" : `step ${from.step}`}
    </a>
  );
}

function Metrics({ events }: { events: JobEvent[] }) {
  const rows = useMemo(() => rowsOf(events), [events]);
  if (!rows.length) return null;
  return (
    <section aria-labelledby="curves">
      <h2 id="curves">Curves</h2>
      <div class="grid">
        {PANELS.map((panel) => (
          <Curves key={panel.title} panel={panel} rows={rows} />
        ))}
      </div>
    </section>
  );
}

function Checkpoints({ path, turn }: { path: string; turn: string }) {
  const found = useLoaded((signal) => get<Page<Checkpoint>>(`${path}/checkpoints?limit=100`, signal), [path, turn]);
  const made = found.value?.data ?? [];
  return (
    <section aria-labelledby="checkpoints">
      <h2 id="checkpoints">Checkpoints</h2>
      <Pending of={found} what="checkpoints" />
      {found.value && !made.length && <Nothing>No checkpoint has been made.</Nothing>}
      {made.length > 0 && (
        <Table caption="Checkpoints, the newest first" head={["Step", "Made", "Loss since the one before"]}>
          {made.map((one) => (
            <tr key={one.id}>
              <th scope="row">{one.step_number}</th>
              <td>{time(one.created_at)}</td>
              <td>{number(one.metrics.train_loss)}</td>
            </tr>
          ))}
        </Table>
      )}
    </section>
  );
}

const FEW = 12;

function Events({ events }: { events: Followed<JobEvent[]> }) {
  const [whole, setWhole] = useState(false);
  const said = events.known.filter((event) => event.type === "message");
  return (
    <section aria-labelledby="events">
      <h2 id="events">Events</h2>
      <Pending of={pendingOf(events)} what="events" />
      {events.looked && !said.length && <Nothing>Nothing has happened yet.</Nothing>}
      {said.length > 0 && (
        <Table caption="Events, the newest first" head={["When", "Level", "What"]}>
          {said.slice(0, whole ? undefined : FEW).map((event) => (
            <tr key={event.id}>
              <td>{time(event.created_at)}</td>
              <td>
                <Badge status={event.level} />
              </td>
              <td>{event.message}</td>
            </tr>
          ))}
        </Table>
      )}
      {said.length > FEW && (
        <button type="button" class="quiet" aria-expanded={whole} onClick={() => setWhole(!whole)}>
          {whole ? "Only the newest" : `All ${said.length}`}
        </button>
      )}
    </section>
  );
}

const NEAR_PIXELS = 24;

/** Shows the end of the log, unless one has scrolled away from it. */
function LogView({ log }: { log: Followed<Log> }) {
  const { text } = log.known;
  const place = useRef<HTMLPreElement>(null);
  const follows = useRef(true);
  useLayoutEffect(() => {
    if (place.current && follows.current) place.current.scrollTop = place.current.scrollHeight;
  }, [text]);
  const onScroll = () => {
    const { scrollHeight, scrollTop, clientHeight } = place.current!;
    follows.current = scrollHeight - scrollTop - clientHeight < NEAR_PIXELS;
  };
  return (
    <section aria-labelledby="log">
      <h2 id="log">Log</h2>
      <Pending of={pendingOf(log)} what="the log" />
      {text && (
        <pre tabIndex={0} aria-labelledby="log" role="region" ref={place} onScroll={onScroll}>
          {text}
        </pre>
      )}
      {log.looked && !text && <Nothing>Nothing has been printed yet.</Nothing>}
    </section>
  );
}

function pendingOf({ looked, error }: Followed<unknown>) {
  return { value: looked || null, error };
}
