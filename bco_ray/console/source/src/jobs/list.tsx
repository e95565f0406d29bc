import { useEffect, useRef } from "preact/hooks";
import { firstOf, get, withQuery, type Page } from "../api.ts";
import { count, time } from "../format.ts";
import { Badge, Heading, Nothing, Pending, Table } from "../parts/basics.tsx";
import { say } from "../parts/live.tsx";
import { useLoaded } from "../parts/loaded.ts";
import { addressOf } from "../route.ts";
import { hasEnded, type Job } from "./types.ts";

const AT_ONCE = 20;
const EVERY_SECONDS = 4;

export function JobsPage() {
  const wanted = useRef(AT_ONCE);
  // All that are shown are asked for each time: so none falls between two pages, and none stands there as it was.
  const found = useLoaded(
    (signal) => firstOf<Job>(wanted.current, (query) => get<Page<Job>>(withQuery("/v1/fine_tuning/jobs", query), signal)),
    [],
    (page) => (page && page.data.every(hasEnded) ? 5 * EVERY_SECONDS : EVERY_SECONDS),
  );
  const jobs = found.value?.data ?? [];
  const rows = useRef<HTMLDivElement>(null);
  const shown = useRef<number | null>(null);
  const more = () => {
    shown.current = jobs.length;
    wanted.current = jobs.length + AT_ONCE;
    found.again();
  };
  useEffect(() => {
    if (shown.current === null || jobs.length <= shown.current) return;
    rows.current?.querySelectorAll<HTMLElement>("tbody a")[shown.current]?.focus(); // the first of those that came
    say(`${count(jobs.length - shown.current, "more job")}.`);
    shown.current = null;
  }, [jobs.length]);
  const create = (
    <a class="primary" href={addressOf("jobs", "new")}>
      New job
    </a>
  );
  return (
    <>
      <Heading actions={create}>Jobs</Heading>
      <Pending of={found} what="jobs" />
      {found.value && !jobs.length && <Nothing>No job yet. A job trains a model on votes.</Nothing>}
      <div ref={rows}>
        {jobs.length > 0 && (
          <Table caption="Jobs, the newest first" head={["Job", "Status", "Model", "Result", "Created", "Metadata"]}>
            {jobs.map((job) => (
              <JobRow key={job.id} job={job} />
            ))}
          </Table>
        )}
      </div>
      {found.value?.has_more && (
        <div class="actions">
          <button type="button" onClick={more}>
            Older jobs
          </button>
        </div>
      )}
    </>
  );
}

function JobRow({ job }: { job: Job }) {
  const { phase, percent } = job.status_details;
  const far = !hasEnded(job) && phase && percent !== null ? ` ${phase} ${Math.floor(percent)} %` : "";
  const metadata = Object.entries(job.metadata).map(([name, value]) => `${name}=${value}`);
  return (
    <tr>
      <th scope="row">
        <a href={addressOf("jobs", job.id)}>{job.user_provided_suffix ?? job.id}</a>
      </th>
      <td>
        <Badge status={job.status} />
        {far}
      </td>
      <td>{job.model}</td>
      <td>{job.fine_tuned_model ?? "–"}</td>
      <td>{time(job.created_at)}</td>
      <td>{metadata.join(" ") || "–"}</td>
    </tr>
  );
}
