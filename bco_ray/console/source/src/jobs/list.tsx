import { useState } from "preact/hooks";
import { get, inWords, withQuery, type Page } from "../api.ts";
import { time } from "../format.ts";
import { Badge, Heading, Nothing, Table, Trouble } from "../parts/basics.tsx";
import { useLoaded } from "../parts/loaded.ts";
import { addressOf } from "../route.ts";
import { hasEnded, type Job } from "./types.ts";

const AT_ONCE = 20;
const EVERY_SECONDS = 4;

export function JobsPage() {
  const first = useLoaded(
    (signal) => get<Page<Job>>(withQuery("/v1/fine_tuning/jobs", { limit: AT_ONCE }), signal),
    [],
    (page) => (page && page.data.every(hasEnded) ? 5 * EVERY_SECONDS : EVERY_SECONDS),
  );
  const [older, setOlder] = useState<Page<Job>[]>([]);
  const [error, setError] = useState<string | null>(null);
  const last = older.at(-1) ?? first.value;
  const more = async () => {
    setError(null);
    try {
      const after = last?.data.at(-1)?.id ?? "";
      const page = await get<Page<Job>>(withQuery("/v1/fine_tuning/jobs", { limit: AT_ONCE, after }));
      setOlder((before) => [...before, page]);
    } catch (problem) {
      setError(inWords(problem));
    }
  };
  const jobs = distinct([...(first.value?.data ?? []), ...older.flatMap((page) => page.data)]);
  const create = (
    <a class="primary" href={addressOf("jobs", "new")}>
      New job
    </a>
  );
  return (
    <>
      <Heading actions={create}>Jobs</Heading>
      <Trouble error={first.error ?? error} />
      {first.value && !jobs.length && <Nothing>No job yet. A job trains a model on votes.</Nothing>}
      {jobs.length > 0 && (
        <Table caption="Jobs, the newest first" head={["Job", "Status", "Model", "Result", "Created", "Metadata"]}>
          {jobs.map((job) => (
            <JobRow key={job.id} job={job} />
          ))}
        </Table>
      )}
      {last?.has_more && (
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

/** A job that came while older pages were fetched is on two of them. */
function distinct(jobs: Job[]): Job[] {
  return [...new Map(jobs.map((job) => [job.id, job])).values()];
}
