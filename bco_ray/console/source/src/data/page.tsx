/** What the log of a job turned out to be, and the rows that are not trained on. */

import { ApiError, get, withQuery, type Page } from "../api.ts";
import { number, percent, time } from "../format.ts";
import { Plot } from "../jobs/chart.tsx";
import { hasEnded, type Job } from "../jobs/types.ts";
import { Facts, Field, Heading, Nothing, Pending, Table } from "../parts/basics.tsx";
import { useLoaded } from "../parts/loaded.ts";
import { addressOf, go } from "../route.ts";
import { Refused } from "./refused.tsx";
import { busiest, overTime, reasonsOf, shiftOf, type Quantiles, type Rate, type Report } from "./report.ts";

const JOBS = 50;
const AGAIN_SECONDS = 5;

export function DataPage({ id }: { id: string | undefined }) {
  const jobs = useLoaded(
    async (signal) => (await get<Page<Job>>(withQuery("/v1/fine_tuning/jobs", { limit: JOBS }), signal)).data,
    [],
  );
  const shown = id ?? jobs.value?.[0]?.id;
  const known = jobs.value ?? [];
  return (
    <>
      <Heading>Data</Heading>
      <Pending of={jobs} what="jobs" />
      {jobs.value?.length === 0 && !id && <Nothing>A log is looked at when a job reads it. There is no job yet.</Nothing>}
      {known.length > 0 && (
        <Field
          label="The log of job"
          control={(its) => (
            <select {...its} value={shown} onChange={(event) => go("data", event.currentTarget.value)}>
              {id && !known.some((job) => job.id === id) && <option value={id}>{id}</option>}
              {known.map((job) => (
                <option key={job.id} value={job.id}>
                  {job.user_provided_suffix ?? job.id}: {job.training_file}, {time(job.created_at)}
                </option>
              ))}
            </select>
          )}
        />
      )}
      {shown && <JobData key={shown} id={shown} />}
    </>
  );
}

function JobData({ id }: { id: string }) {
  const path = `/v1/fine_tuning/jobs/${encodeURIComponent(id)}`;
  const report = useLoaded((signal) => reportOf(path, signal), [id], (found) => (found === "not yet" ? AGAIN_SECONDS : null));
  if (report.value === "not yet" || report.value === "never") {
    return (
      <Nothing>
        The log of <a href={addressOf("jobs", id)}>this job</a>{" "}
        {report.value === "never" ? "was not read before the job ended." : "has not been read yet."}
      </Nothing>
    );
  }
  return (
    <>
      <Pending of={report} what="what its log turned out to be" />
      {report.value && <ReportView report={report.value} />}
      {report.value && <Refused path={path} reasons={reasonsOf(report.value)} read={report.value.read} />}
    </>
  );
}

/** Of a job that is there the report may not be; once the job has ended it never will. */
async function reportOf(path: string, signal: AbortSignal): Promise<Report | "not yet" | "never"> {
  try {
    return await get<Report>(`${path}/data`, signal);
  } catch (error) {
    const unread = error instanceof ApiError && error.status === 404 && error.message.includes("not been read");
    if (!unread) throw error;
    return hasEnded(await get<Job>(path, signal)) ? "never" : "not yet";
  }
}

function ReportView({ report }: { report: Report }) {
  const { statistics: found, matching } = report;
  const [times, rates] = overTime(found.by_month);
  const users = found.users;
  return (
    <>
      <section class="card" aria-label="In numbers">
        <Facts
          facts={[
            ["Votes read", number(report.read)],
            ["Kept", `${number(report.kept)} (${percent(report.read ? report.kept / report.read : null)})`],
            ["Thumbs up", percent(found.up_rate, 1)],
            ["Different prompts", number(found.prompts.distinct)],
            ["With ups and downs", number(found.prompts.with_both_labels)],
            ["Users", `${number(users.distinct)}${users.exact ? "" : ", about"}`],
            ["Agreement on an answer", found.agreement.pairs ? `${percent(found.agreement.rate)}, by chance ${percent(found.agreement.chance)}` : "–"],
            ["With a comment", number(found.rows_with.comment)],
            ["With a correction", number(found.rows_with.correction)],
          ]}
        />
      </section>
      <section aria-labelledby="shift">
        <h2 id="shift">Do ups and downs get other prompts?</h2>
        <p>{shiftOf(matching)}</p>
        {matching?.warnings?.map((warning) => <p key={warning} class="note">{warning}</p>)}
      </section>
      {times.length > 0 && (
        <section aria-labelledby="time">
          <h2 id="time">Thumbs up over time</h2>
          {times.length > 1 && (
            <div class="card">
              <Plot label={`Share of thumbs up in ${times.length} months; the table below has the numbers.`} names={["thumbs up"]} data={[times, rates]} times />
            </div>
          )}
          <Rates caption="Thumbs up by month" rates={found.by_month} />
        </section>
      )}
      <section aria-labelledby="lengths">
        <h2 id="lengths">Lengths in characters</h2>
        <Table caption="Lengths of prompts and answers" head={["", "10 %", "half", "90 %", "99 %"]}>
          {(["prompt", "completion"] as const).flatMap((part) =>
            (["up", "down"] as const).map((label) => (
              <QuantileRow key={part + label} name={`${part === "prompt" ? "Prompts" : "Answers"}, ${label}`} values={found.length[part][label]} />
            )),
          )}
        </Table>
      </section>
      <section aria-labelledby="users">
        <h2 id="users">Votes per user</h2>
        <Table caption="Votes per user" head={["", "10 %", "half", "90 %", "99 %"]}>
          <QuantileRow name="Votes" values={users.votes_per_user} />
        </Table>
        <ul>
          {busiest(users.top_share, users.distinct).map(([count, share]) => (
            <li key={count}>
              The busiest {count === 1 ? "user" : count} gave {percent(share)}.
            </li>
          ))}
        </ul>
      </section>
      <div class="grid">
        <section aria-labelledby="sources">
          <h2 id="sources">By source</h2>
          <Rates caption="Thumbs up by source" rates={found.by_source} />
        </section>
        <section aria-labelledby="versions">
          <h2 id="versions">By version that answered</h2>
          <Rates caption="Thumbs up by version" rates={found.by_model} />
        </section>
      </div>
    </>
  );
}

function QuantileRow({ name, values }: { name: string; values: Quantiles }) {
  return (
    <tr>
      <th scope="row">{name}</th>
      {["p10", "p50", "p90", "p99"].map((quantile) => (
        <td key={quantile}>{number(values[quantile] == null ? null : Math.round(values[quantile]))}</td>
      ))}
    </tr>
  );
}

function Rates({ caption, rates }: { caption: string; rates: Rate[] }) {
  return (
    <Table caption={caption} head={["", "Votes", "Thumbs up"]}>
      {rates.map((rate) => (
        <tr key={rate.key}>
          <th scope="row">{rate.key}</th>
          <td>{number((rate.ups ?? 0) + (rate.downs ?? 0))}</td>
          <td>{percent(rate.up_rate, 1)}</td>
        </tr>
      ))}
    </Table>
  );
}
