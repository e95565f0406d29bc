/** One job: how far it is, what it is doing, what came of it, and what can be done about it. */

import { useState } from "preact/hooks";
import { get, post, type Page } from "../api.ts";
import { count, duration, number, plain, time } from "../format.ts";
import { Badge, Facts, Heading, Nothing, Table, Trouble } from "../parts/basics.tsx";
import { Confirm } from "../parts/dialog.tsx";
import { say } from "../parts/live.tsx";
import { useLoaded } from "../parts/loaded.ts";
import { addressOf, go } from "../route.ts";
import { randomId } from "../session.ts";
import { Curves } from "./chart.tsx";
import { PANELS, rowsOf } from "./curves.ts";
import { useEvents, useLog } from "./trail.ts";
import { hasEnded, movesOf, phaseOf, type Checkpoint, type Job, type JobEvent } from "./types.ts";

const EVERY_SECONDS = 2;

export function JobPage({ id }: { id: string }) {
  const path = `/v1/fine_tuning/jobs/${encodeURIComponent(id)}`;
  const alive = (job: Job | null) => !job || !hasEnded(job) || job.status_details.on_cluster;
  const job = useLoaded((signal) => get<Job>(path, signal), [id], (one) => (alive(one) ? EVERY_SECONDS : null));
  const events = useEvents(id, job.value);
  const log = useLog(id, job.value);
  const one = job.value;
  return (
    <>
      <p>
        <a href={addressOf("jobs")}>All jobs</a>
      </p>
      <Heading actions={one && <Moves job={one} path={path} onMoved={job.again} />}>
        {one?.user_provided_suffix ?? "Job"} <span class="help">{id}</span>
      </Heading>
      <Trouble error={job.error} />
      {one && (
        <>
          <Standing job={one} />
          <Metrics events={events} />
          <Checkpoints path={path} turn={`${one.status} ${one.status_details.checkpoint_step}`} />
          <Events events={events} />
          <section aria-labelledby="log">
            <h2 id="log">Log</h2>
            {log ? (
              <pre tabIndex={0} aria-labelledby="log" role="region">
                {log}
              </pre>
            ) : (
              <Nothing>Nothing has been printed yet.</Nothing>
            )}
          </section>
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
        <Badge status={job.status} /> {job.fine_tuned_model && <ResultLink reference={job.fine_tuned_model} />}
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
          ["Spent", `${number(job.spent.hours)} h, ${number(job.spent.gpu_hours)} GPU h, ${count(job.spent.tokens ?? 0, "token")}`],
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

const MOVES = {
  pause: { name: "Pause", ask: "Pause this job?", means: "It stops after a checkpoint, and its cluster is free until it is resumed." },
  resume: { name: "Resume", ask: "Resume this job?", means: "It goes on from its newest checkpoint." },
  cancel: { name: "Cancel", ask: "Cancel this job?", means: "It ends after a checkpoint, from which it can be retried as a new job." },
  retry: { name: "Retry", ask: "Train again?", means: "A new job goes on from the newest checkpoint, with the same data and model." },
};

function Moves({ job, path, onMoved }: { job: Job; path: string; onMoved: () => void }) {
  const [asked, setAsked] = useState<keyof typeof MOVES | null>(null);
  const move = async (verb: keyof typeof MOVES) => {
    const moved = await post<Job>(`${path}/${verb}`, {}, verb === "retry" ? { "idempotency-key": randomId() } : {});
    say(`${MOVES[verb].name}: the job is ${moved.status}.`);
    if (verb === "retry") go("jobs", moved.id);
    else onMoved();
  };
  return (
    <div class="actions">
      {movesOf(job).map((verb) => (
        <button key={verb} type="button" class={verb === "cancel" ? "danger" : ""} onClick={() => setAsked(verb)}>
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

function Metrics({ events }: { events: JobEvent[] }) {
  const rows = rowsOf(events);
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
  if (!found.value?.data.length) return <Trouble error={found.error} />;
  return (
    <section aria-labelledby="checkpoints">
      <h2 id="checkpoints">Checkpoints</h2>
      <Table caption="Checkpoints, the newest first" head={["Step", "Made", "Loss since the one before"]}>
        {found.value.data.map((one) => (
          <tr key={one.id}>
            <th scope="row">{one.step_number}</th>
            <td>{time(one.created_at)}</td>
            <td>{number(one.metrics.train_loss)}</td>
          </tr>
        ))}
      </Table>
    </section>
  );
}

const FEW = 12;

function Events({ events }: { events: JobEvent[] }) {
  const [whole, setWhole] = useState(false);
  const said = events.filter((event) => event.type === "message");
  if (!said.length) return null;
  return (
    <section aria-labelledby="events">
      <h2 id="events">Events</h2>
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
      {said.length > FEW && (
        <button type="button" class="quiet" aria-expanded={whole} onClick={() => setWhole(!whole)}>
          {whole ? "Only the newest" : `All ${said.length}`}
        </button>
      )}
    </section>
  );
}
