/** A new job, or what it would take. Which settings there are the server's schema says. */

import type { TargetedEvent } from "preact";
import { useMemo, useRef, useState } from "preact/hooks";
import { get, inWords, post, upload, type Page } from "../api.ts";
import { Field, Heading, Trouble } from "../parts/basics.tsx";
import { say } from "../parts/live.tsx";
import { useLoaded } from "../parts/loaded.ts";
import { addressOf, go } from "../route.ts";
import { randomId } from "../session.ts";
import { EstimateView } from "./estimate.tsx";
import { GroupFields, Inputs, type Typed } from "./fields.tsx";
import { bodyOf, formOf, type Chosen, type Schemas } from "./request.ts";
import type { Estimate, Job } from "./types.ts";

interface Stored {
  id: string;
  filename: string;
}

export function NewJobPage() {
  const schemas = useLoaded((signal) => get<Schemas>("/v1/fine_tuning/schema", signal), []);
  return (
    <>
      <p>
        <a href={addressOf("jobs")}>All jobs</a>
      </p>
      <Heading>New job</Heading>
      <Trouble error={schemas.error} />
      {schemas.value && <JobForm schemas={schemas.value} />}
    </>
  );
}

function JobForm({ schemas }: { schemas: Schemas }) {
  const form = useMemo(() => formOf(schemas), [schemas]);
  const [chosen, setChosen] = useState<Chosen>({ model: "", training_file: "", method: schemas.methods[0] ?? "bco" });
  const [values, setValues] = useState<Record<string, string>>({});
  const [wrong, setWrong] = useState<Record<string, string>>({});
  const [error, setError] = useState<string | null>(null);
  const [busy, setBusy] = useState<"" | "estimate" | "create">("");
  const [estimate, setEstimate] = useState<Estimate | null>(null);
  const idempotency = useRef({ said: "", key: "" });
  const typed: Typed = { values, wrong, set: (path, text) => setValues((before) => ({ ...before, [path]: text })) };

  const send = async (what: "estimate" | "create") => {
    const { body, wrong: found } = bodyOf(chosen, form, values);
    setWrong(found);
    setError(null);
    if (Object.keys(found).length) return setError("Some fields do not fit; each says what it takes.");
    setBusy(what);
    try {
      if (what === "estimate") {
        setEstimate(null);
        setEstimate(await post<Estimate>("/v1/fine_tuning/jobs/estimate", body));
        say("The estimate is there.");
      } else {
        const job = await post<Job>("/v1/fine_tuning/jobs", body, { "idempotency-key": keyFor(idempotency.current, body) });
        go("jobs", job.id);
      }
    } catch (problem) {
      setError(inWords(problem));
    }
    setBusy("");
  };
  const create = (event: TargetedEvent<HTMLFormElement>) => {
    event.preventDefault();
    void send("create");
  };
  return (
    <form onSubmit={create} noValidate>
      <section class="card" aria-label="What to train">
        <div class="row">
          <ModelField value={chosen.model} error={wrong.model} onChange={(model) => setChosen((before) => ({ ...before, model }))} />
          <Field
            label="Method"
            control={(its) => (
              <select
                {...its}
                value={chosen.method}
                onChange={(event) => {
                  const method = event.currentTarget.value;
                  setChosen((before) => ({ ...before, method }));
                }}
              >
                {schemas.methods.map((method) => (
                  <option key={method}>{method}</option>
                ))}
              </select>
            )}
          />
        </div>
        <VotesField
          value={chosen.training_file}
          error={wrong.training_file}
          onChange={(training_file) => setChosen((before) => ({ ...before, training_file }))}
        />
        <Inputs inputs={form.rest.inputs} typed={typed} />
        <h2>Hyperparameters</h2>
        <p class="help">What is left empty is as the field shows it; auto is worked out when the job begins.</p>
        <Inputs inputs={form.hyperparameters.inputs} typed={typed} />
      </section>
      <details class="card">
        <summary>Budget</summary>
        <p class="help">{form.budget.help}</p>
        <Inputs inputs={form.budget.inputs} typed={typed} />
      </details>
      <details class="card">
        <summary>Every other setting</summary>
        {form.spec.groups.map((group) => (
          <GroupFields key={group.name} group={group} typed={typed} />
        ))}
      </details>
      <Trouble error={error} />
      <div class="actions">
        <button type="button" disabled={busy !== ""} onClick={() => send("estimate")}>
          {busy === "estimate" ? "Reckoning …" : "What would it take?"}
        </button>
        <button type="submit" class="primary" disabled={busy !== ""}>
          Create the job
        </button>
      </div>
      {estimate && <EstimateView estimate={estimate} />}
    </form>
  );
}

/** The same request sent again, after no answer came, is the same job. */
function keyFor(kept: { said: string; key: string }, body: unknown): string {
  const said = JSON.stringify(body);
  if (kept.said !== said) Object.assign(kept, { said, key: `console-${randomId()}` });
  return kept.key;
}

function ModelField({ value, error, onChange }: { value: string; error?: string; onChange: (model: string) => void }) {
  const known = useLoaded(
    async (signal) => (await get<Page<{ id: string; versions: { id: string }[] }>>("/v1/registry/models", signal)).data,
    [],
  );
  const names = (known.value ?? []).flatMap((model) => [`${model.id}@prod`, ...model.versions.map((one) => one.id).reverse()]);
  return (
    <Field
      label="Model"
      help="A registered version (name/3, name@prod), or a place that the server allows."
      error={error}
      control={(its) => (
        <>
          <input {...its} type="text" list="models" autocomplete="off" value={value} onInput={(event) => onChange(event.currentTarget.value)} />
          <datalist id="models">
            {names.map((name) => (
              <option key={name} value={name} />
            ))}
          </datalist>
        </>
      )}
    />
  );
}

function VotesField({ value, error, onChange }: { value: string; error?: string; onChange: (place: string) => void }) {
  const files = useLoaded(async (signal) => (await get<Page<Stored>>("/v1/files?limit=100", signal)).data, []);
  const [problem, setProblem] = useState<string | null>(null);
  const [busy, setBusy] = useState(false);
  const send = async (event: TargetedEvent<HTMLInputElement>) => {
    const file = event.currentTarget.files?.[0];
    if (!file) return;
    setBusy(true);
    setProblem(null);
    try {
      const stored = await upload<Stored>("/v1/files", file, { purpose: "fine-tune" });
      onChange(stored.id);
      files.again();
      say(`${stored.filename} is uploaded.`);
    } catch (failed) {
      setProblem(inWords(failed));
    }
    setBusy(false);
  };
  const uploaded = files.value ?? [];
  return (
    <>
      <div class="row">
        <Field
          label="Votes"
          help="An upload, a place that the server allows, or the server's own log: feedback is all of it, feedback: what came since the last version."
          error={error}
          control={(its) => (
            <>
              <input {...its} type="text" list="votes" autocomplete="off" value={value} onInput={(event) => onChange(event.currentTarget.value)} />
              <datalist id="votes">
                <option value="feedback">The server's own log</option>
                <option value="feedback:">Its newest votes</option>
                {uploaded.map((file) => (
                  <option key={file.id} value={file.id}>
                    {file.filename}
                  </option>
                ))}
              </datalist>
            </>
          )}
        />
        <Field label={busy ? "Uploading …" : "Upload a file of votes"} control={(its) => <input {...its} type="file" disabled={busy} onChange={send} />} />
      </div>
      <p class="note">{uploaded.filter((file) => file.id === value).map((file) => `${file.id} is ${file.filename}`)}</p>
      <Trouble error={problem} />
    </>
  );
}
