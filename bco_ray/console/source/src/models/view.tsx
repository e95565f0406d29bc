/** One model: its versions side by side, what its names mean, and moving them. */

import { useState } from "preact/hooks";
import { get, post, type Page } from "../api.ts";
import { number, plain, time } from "../format.ts";
import { Heading, Table, Trouble } from "../parts/basics.tsx";
import { say } from "../parts/live.tsx";
import { useLoaded } from "../parts/loaded.ts";
import { addressOf } from "../route.ts";
import { Canary, Promote, Rollback } from "./moves.tsx";
import { gateText, metricsOf, rate, said, shareOf, trialText, type Model, type Thumbs, type Version } from "./stats.ts";

const FEW = 5;

export function ModelPage({ name }: { name: string }) {
  const path = `/v1/registry/models/${encodeURIComponent(name)}`;
  const model = useLoaded((signal) => get<Model>(path, signal), [name]);
  const thumbs = useLoaded(async (signal) => (await get<Page<Thumbs>>("/v1/feedback/summary", signal)).data, [name, model.value]);
  const move = async (verb: "promote" | "rollback" | "canary", body: unknown) => {
    await post<Model>(`${path}/${verb}`, body);
    say("Done. The server follows within a moment.");
    model.again();
  };
  const one = model.value;
  return (
    <>
      <p>
        <a href={addressOf("models")}>All models</a>
      </p>
      <Heading>{name}</Heading>
      <Trouble error={model.error ?? thumbs.error} />
      {one && (
        <>
          <Versions model={one} thumbs={thumbs.value ?? []} onMove={move} />
          <Names model={one} onMove={move} />
          <History model={one} />
        </>
      )}
    </>
  );
}

export type Move = (verb: "promote" | "rollback" | "canary", body: unknown) => Promise<void>;

function Versions({ model, thumbs, onMove }: { model: Model; thumbs: Thumbs[]; onMove: Move }) {
  const [whole, setWhole] = useState(false);
  const newest = [...model.versions].sort((a, b) => b.version - a.version);
  const shown = whole ? newest : newest.filter((one, place) => place < FEW || one.aliases.length > 0);
  const row = (title: string, cell: (version: Version) => string) => (
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
        {row("Thumbs up", (version) => rate(thumbs.find((one) => one.id === version.id)))}
        {shown.some((version) => version.gate) && row("Gate", gateText)}
        {metricsOf(shown).map((metric) => row(metric.replace("eval_", ""), (version) => number(version.evaluation?.[metric])))}
        {row("Trained on", (version) => votesText(version.votes))}
        {row("From", (version) => plain(version.parent))}
        {row("Run", (version) => plain(version.run?.split("/").at(-1)))}
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
      {shown.length < newest.length && (
        <button type="button" class="quiet" onClick={() => setWhole(true)}>
          All {newest.length} versions
        </button>
      )}
    </section>
  );
}

function shareText(share: number | null): string {
  return share === null ? "–" : `${share} %`;
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
