/** What the log of a job turned out to be, and the rows that are not trained on. */

import { useMemo, useRef } from "preact/hooks";
import { ApiError, firstOf, get, withQuery, type Page } from "../api.ts";
import { number, percent, plain, time } from "../format.ts";
import { Plot } from "../jobs/chart.tsx";
import { hasEnded, type Job } from "../jobs/types.ts";
import { Badge, Facts, Field, Heading, Nothing, Pending, Table, Trouble } from "../parts/basics.tsx";
import { useLoaded } from "../parts/loaded.ts";
import { addressOf, go } from "../route.ts";
import { Refused } from "./refused.tsx";
import { busiest, endOf, overTime, reasonsOf, shiftOf, type Quantiles, type Rate, type Report, type Unit } from "./report.ts";

const AT_ONCE = 50;
const AGAIN_SECONDS = 5;

export function DataPage({ id }: { id: string | undefined }) {
  const wanted = useRef(AT_ONCE);
  const jobs = useLoaded(
    (signal) => firstOf<Job>(wanted.current, (query) => get<Page<Job>>(withQuery("/v1/fine_tuning/jobs", query), signal)),
    [],
  );
  const known = jobs.value?.data ?? [];
  const shown = id ?? known[0]?.id;
  const picker = useRef<HTMLDivElement>(null);
  const more = () => {
    wanted.current = known.length + AT_ONCE;
    picker.current?.querySelector("select")?.focus(); // the button may go away
    jobs.again();
  };
  return (
    <>
      <Heading>Data</Heading>
      <Pending of={jobs} what="jobs" />
      {jobs.value && !known.length && !id && <Nothing>A log is looked at when a job reads it. There is no job yet.</Nothing>}
      {known.length > 0 && (
        <div class="row" ref={picker}>
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
          {jobs.value?.has_more && (
            <button type="button" onClick={more}>
              Older jobs
            </button>
          )}
        </div>
      )}
      {shown && <JobData key={shown} id={shown} />}
    </>
  );
}

interface Looked {
  job: Job;
  /** Null: its log has not been read, or its run left nothing to say of it. */
  report: Report | null;
}

function JobData({ id }: { id: string }) {
  const path = `/v1/fine_tuning/jobs/${encodeURIComponent(id)}`;
  const found = useLoaded((signal) => look(path, signal), [id], (one) => (one && hasEnded(one.job) ? null : AGAIN_SECONDS));
  const { job, report } = found.value ?? {};
  return (
    <>
      <Pending of={found} what="what its log turned out to be" />
      {job && (
        <p>
          <Badge status={job.status} /> <a href={addressOf("jobs", id)}>The job</a>
        </p>
      )}
      {job?.error && <Trouble error={`${job.error.code}: ${job.error.message}`} />}
      {job && !report && <Nothing>{unread(job)}</Nothing>}
      {job && report && <ReportView report={report} status={job.status} />}
      {report && <Refused path={path} reasons={reasonsOf(report)} read={report.read} />}
    </>
  );
}

/** The job first: once that has ended, what is there of its log is all that there will be. */
async function look(path: string, signal: AbortSignal): Promise<Looked> {
  const job = await get<Job>(path, signal);
  try {
    return { job, report: await get<Report>(`${path}/data`, signal) };
  } catch (error) {
    if (error instanceof ApiError && error.code === "log_not_read") return { job, report: null };
    throw error;
  }
}

function unread(job: Job): string {
  if (!hasEnded(job)) return "Its log has not been read yet.";
  if (job.status === "succeeded") return "What its log turned out to be is not there.";
  return `Its log was not read before the job ${endOf(job.status)}.`;
}

const UNITS: Record<Unit, string> = { day: "days", week: "weeks", month: "months" };

function ReportView({ report, status }: { report: Report; status: string }) {
  const { statistics: found, matching } = report;
  const { unit, rates } = found.over_time;
  const curve = useMemo(() => overTime(rates), [rates]);
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
            ["Most votes on one prompt", number(found.prompts.most_votes_on_one)],
            ["Users", `${number(users.distinct)}${users.exact ? "" : ", about"}`],
            ["Agreement on an answer", found.agreement.pairs ? `${percent(found.agreement.rate)}, by chance ${percent(found.agreement.chance)}` : "–"],
            ["With a comment", number(found.rows_with.comment)],
            ["With a correction", number(found.rows_with.correction)],
            ...Object.entries(report.answers).map(([what, count]): [string, string] => [`Answers ${what}`, plain(count)]),
          ]}
        />
      </section>
      <section aria-labelledby="shift">
        <h2 id="shift">Do ups and downs get other prompts?</h2>
        <p>{shiftOf(matching, status)}</p>
        {matching?.warnings?.map((warning) => <p key={warning} class="note">{warning}</p>)}
      </section>
      {curve[0].length > 0 && (
        <section aria-labelledby="time">
          <h2 id="time">Thumbs up over time (UTC)</h2>
          {curve[0].length > 1 && (
            <div class="card">
              <Plot label={`Share of thumbs up in ${curve[0].length} ${UNITS[unit]}; the table below has the numbers.`} names={["thumbs up"]} data={curve} times />
            </div>
          )}
          <Rates caption={`Thumbs up by ${unit}`} rates={rates} of={unit === "week" ? "week of " : ""} />
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

function Rates({ caption, rates, of = "" }: { caption: string; rates: Rate[]; of?: string }) {
  return (
    <Table caption={caption} head={["", "Votes", "Thumbs up"]}>
      {rates.map((rate) => (
        <tr key={rate.key}>
          <th scope="row">{/^\d/.test(rate.key) ? of : ""}{rate.key}</th>
          <td>{number((rate.ups ?? 0) + (rate.downs ?? 0))}</td>
          <td>{percent(rate.up_rate, 1)}</td>
        </tr>
      ))}
    </Table>
  );
}
