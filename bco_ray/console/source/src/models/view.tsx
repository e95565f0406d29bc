/** One model: its versions side by side, what its names mean, and moving them. */

import type { ComponentChildren } from "preact";
import { useEffect, useState } from "preact/hooks";
import { ApiError, get, inWords, post, type Page } from "../api.ts";
import { number, plain, time } from "../format.ts";
import { Heading, Pending, Table, Trouble } from "../parts/basics.tsx";
import { say } from "../parts/live.tsx";
import { useLoaded, type Loaded } from "../parts/loaded.ts";
import { poll } from "../parts/polling.ts";
import { addressOf } from "../route.ts";
import { rowsOf, type Evaluation, type Found } from "./evaluations.ts";
import { Canary, Promote, Rollback } from "./moves.tsx";
import {
  gateText, lastMove, LEVEL, metricsOf, rate, said, shareOf, trialText, votesCast, WATCH_SECONDS, type Model,
  type Thumbs, type Version,
} from "./stats.ts";

const FEW = 5;
/** Votes are counted over the whole log, so not at every look at a canary. */
const LOOKS_PER_COUNT = 4;

export function ModelPage({ name }: { name: string }) {
  const path = `/v1/registry/models/${encodeURIComponent(name)}`;
  const model = useLoaded((signal) => get<Model>(path, signal), [name]);
  const thumbs = useLoaded(async (signal) => (await get<Page<Thumbs>>("/v1/feedback/summary", signal)).data, [name]);
  useWatch(model.value?.canary != null, (looks) => {
    model.again();
    if (looks % LOOKS_PER_COUNT === 0) thumbs.again();
  });
  const move = async (verb: "promote" | "rollback" | "canary", body: unknown) => {
    try {
      const moved = await post<Model>(`${path}/${verb}`, body);
      model.set(moved);
      thumbs.again();
      say(`${lastMove(moved)}. The server follows within a moment.`);
    } catch (error) {
      if (!(error instanceof ApiError) || error.code !== "alias_moved") throw error;
      model.again();
      throw new Error(`${error.message} Nothing was changed. The page shows how it is now: look again, then decide.`);
    }
  };
  const one = model.value;
  return (
    <>
      <p>
        <a href={addressOf("models")}>All models</a>
      </p>
      <Heading>{name}</Heading>
      <Pending of={model} what="the model" />
      <Trouble error={thumbs.error && `The votes cannot be counted: ${thumbs.error}`} />
      {one && (
        <>
          <Versions model={one} thumbs={thumbs} onMove={move} />
          <Names model={one} onMove={move} />
          <History model={one} />
        </>
      )}
    </>
  );
}

/** While a canary runs, what became of it; but nothing changes below a question that is open. */
function useWatch(runs: boolean, again: (looks: number) => void): void {
  useEffect(() => {
    let looks = 0;
    return runs
      ? poll(async () => {
          if (looks && !document.querySelector("dialog[open]")) again(looks);
          looks += 1;
          return WATCH_SECONDS;
        })
      : undefined;
  }, [runs]);
}

export type Move = (verb: "promote" | "rollback" | "canary", body: unknown) => Promise<void>;

function Versions({ model, thumbs, onMove }: { model: Model; thumbs: Loaded<Thumbs[]>; onMove: Move }) {
  const [whole, setWhole] = useState(false);
  const counted = thumbs.value ? "known" : thumbs.error ? "failed" : "loading";
  const thumbsOf = (version: Version) => thumbs.value?.find((one) => one.id === version.id);
  const newest = [...model.versions].sort((a, b) => b.version - a.version);
  const few = newest.filter((one, place) => place < FEW || one.aliases.length > 0);
  const shown = whole ? newest : few;
  const evaluations = useEvaluations(model.id, shown);
  const row = (title: string, cell: (version: Version) => ComponentChildren) => (
    <tr key={title}>
      <th scope="row">{title}</th>
      {shown.map((version) => (
        <td key={version.id}>{cell(version)}</td>
      ))}
    </tr>
  );
  return (
    <section aria-labelledby="versions">
      <h2 id="versions">Versions</h2>
      <Table caption="Versions side by side, the newest first" head={["", ...shown.map((version) => version.id)]}>
        {row("Names", (version) => version.aliases.join(", ") || "–")}
        {row(`Answers ${model.id}`, (version) => shareText(shareOf(model, version.version)))}
        {row("Votes", (version) => votesCast(thumbsOf(version), counted))}
        {row(`People whose first vote is a thumb up (${LEVEL})`, (version) => rate(thumbsOf(version), counted))}
        {shown.some((version) => version.gate) && row("Gate", gateText)}
        {metricsOf(shown).map((metric) => row(`${metric.replace("eval_", "")} in training`, (version) => number(version.evaluation?.[metric])))}
        {rowsOf(shown.map((version) => evaluations(version))).map(({ title, cells }) => row(title, (version) => cells[shown.indexOf(version)] ?? "–"))}
        {row("Trained on", (version) => votesText(version.votes))}
        {row("From", (version) => plain(version.parent))}
        {row("Run", (version) => runOf(version))}
        {row("Registered", (version) => time(version.registered_at))}
        <tr>
          <th scope="row">Move a name here</th>
          {shown.map((version) => (
            <td key={version.id}>
              <Promote model={model} version={version} onMove={onMove} />
            </td>
          ))}
        </tr>
      </Table>
      {few.length < newest.length && (
        <button type="button" class="quiet" aria-expanded={whole} onClick={() => setWhole(!whole)}>
          {whole ? "Only the newest" : `All ${newest.length} versions`}
        </button>
      )}
    </section>
  );
}

/** The newest evaluation of each version; of one without any nothing is asked. */
function useEvaluations(name: string, versions: Version[]): (version: Version) => Found {
  const evaluated = versions.filter((version) => version.evaluations > 0);
  const found = useLoaded(
    (signal) => Promise.all(evaluated.map(async (version) => [version.id, await newest(name, version, signal)] as const)),
    [name, evaluated.map((version) => `${version.version}:${version.evaluations}`).join(" ")],
  );
  const known = new Map<string, Found>(found.value ?? []);
  return (version) => (version.evaluations === 0 ? null : (known.get(version.id) ?? found.error ?? "loading …"));
}

/** In words what is wrong with it, if it cannot be read: that must not hide the others. */
async function newest(name: string, { version }: Version, signal: AbortSignal): Promise<Found> {
  const path = `/v1/registry/models/${encodeURIComponent(name)}/versions/${version}/evaluations?limit=1`;
  try {
    return (await get<Page<Evaluation>>(path, signal)).data[0] ?? null;
  } catch (error) {
    if (signal.aborted) throw error;
    return `cannot be read: ${inWords(error)}`;
  }
}

function shareText(share: number | null): string {
  return share === null ? "–" : `${share} %`;
}

/** A job, where a job was its run. */
function runOf({ run }: Version): ComponentChildren {
  const name = run?.split("/").at(-1);
  return name?.startsWith("ftjob-") ? <a href={addressOf("jobs", name)}>{name}</a> : plain(name);
}

function votesText(votes: Version["votes"]): string {
  if (!votes) return "–";
  const { read, kept } = votes;
  return `${number(kept)} of ${number(read)} votes`;
}

function Names({ model, onMove }: { model: Model; onMove: Move }) {
  const names = Object.entries(model.aliases);
  return (
    <section aria-labelledby="names">
      <h2 id="names">Names</h2>
      {names.length > 0 && (
        <Table caption="What names mean" head={["Name", "Version", "Back"]}>
          {names.map(([alias, version]) => (
            <tr key={alias}>
              <th scope="row">
                {model.id}@{alias}
              </th>
              <td>{version}</td>
              <td>
                <Rollback model={model} alias={alias} version={version} onMove={onMove} />
              </td>
            </tr>
          ))}
        </Table>
      )}
      <Canary model={model} onMove={onMove} />
      {model.trial && <p class="note">{trialText(model.trial)}</p>}
    </section>
  );
}

function History({ model }: { model: Model }) {
  if (!model.history.length) return null;
  return (
    <details>
      <summary>Every move, the newest first</summary>
      <ul>
        {[...model.history].reverse().map((move, place) => (
          <li key={place}>
            {time(move.at)}: {said(move)}
          </li>
        ))}
      </ul>
    </details>
  );
}
