/** A new job, or what it would take. Which settings there are the server's schema says. */

import type { TargetedEvent } from "preact";
import { useEffect, useMemo, useRef, useState } from "preact/hooks";
import { get, inWords, post } from "../api.ts";
import { Field, Heading, Pending, Trouble } from "../parts/basics.tsx";
import { Intents } from "../parts/intents.ts";
import { say } from "../parts/live.tsx";
import { useLoaded } from "../parts/loaded.ts";
import { addressOf, go } from "../route.ts";
import { EstimateView } from "./estimate.tsx";
import { GroupFields, Inputs, showWrong, type Typed } from "./fields.tsx";
import { bodyOf, formOf, placeOf, type Chosen, type Schemas } from "./request.ts";
import { ModelField, VotesField } from "./sources.tsx";
import type { Estimate, Job } from "./types.ts";

export function NewJobPage() {
  const schemas = useLoaded((signal) => get<Schemas>("/v1/fine_tuning/schema", signal), []);
  return (
    <>
      <p>
        <a href={addressOf("jobs")}>All jobs</a>
      </p>
      <Heading>New job</Heading>
      <Pending of={schemas} what="the form" />
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
  const [uploading, setUploading] = useState(false);
  const [estimate, setEstimate] = useState<Estimate | null>(null);
  const [attempts, setAttempts] = useState(0);
  const place = useRef<HTMLFormElement>(null);
  const asking = useRef(false);
  const wanted = useRef(new Intents());
  const version = useRef(0);
  useEffect(() => {
    if (attempts && place.current) showWrong(place.current);
  }, [attempts]);

  const changed = (path: string) => {
    version.current += 1; // an estimate of what was there before is none of this
    setEstimate(null);
    setWrong(({ [path]: _, ...others }) => others);
  };
  const set = (path: string, text: string) => {
    changed(path);
    setValues((before) => ({ ...before, [path]: text }));
  };
  const choose = (name: keyof Chosen) => (text: string) => {
    changed(name);
    setChosen((before) => ({ ...before, [name]: text }));
  };
  const typed: Typed = { values, wrong, set };

  const refuse = (found: Record<string, string>, message: string) => {
    setWrong(found);
    setError(message);
    setAttempts((before) => before + 1);
  };
  const reckon = async (body: unknown) => {
    const of = version.current;
    setEstimate(null);
    const found = await post<Estimate>("/v1/fine_tuning/jobs/estimate", body);
    if (of !== version.current) return say("The form has changed since the estimate was asked for.");
    setEstimate(found);
    say("The estimate is there.");
  };
  const make = async (body: unknown) => {
    const job = await post<Job>("/v1/fine_tuning/jobs", body, { "idempotency-key": wanted.current.key("job", body) });
    say(`The job ${job.id} is created.`);
    go("jobs", job.id);
  };
  const send = async (what: "estimate" | "create") => {
    if (asking.current) return;
    if (uploading) return say("A file is still on its way.");
    const { body, wrong: found } = bodyOf(chosen, form, values);
    if (Object.keys(found).length) return refuse(found, "Some fields do not fit; each says what it takes.");
    setWrong({});
    setError(null);
    setBusy(what);
    asking.current = true;
    try {
      await (what === "estimate" ? reckon(body) : make(body));
    } catch (problem) {
      const path = placeOf(problem, form);
      refuse(path ? { [path]: inWords(problem) } : {}, inWords(problem));
    }
    asking.current = false;
    setBusy("");
  };
  const waits = busy !== "" || uploading;
  const create = (event: TargetedEvent<HTMLFormElement>) => {
    event.preventDefault();
    void send("create");
  };
  return (
    <form onSubmit={create} ref={place} noValidate>
      <section class="card" aria-label="What to train">
        <div class="row">
          <ModelField value={chosen.model} error={wrong.model} onChange={choose("model")} />
          <Field
            label="Method"
            error={wrong.method}
            control={(its) => (
              <select
                {...its}
                value={chosen.method}
                onChange={(event) => choose("method")(event.currentTarget.value)}
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
          onChange={choose("training_file")}
          onUploading={setUploading}
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
        <button type="button" aria-disabled={waits} onClick={() => send("estimate")}>
          {busy === "estimate" ? "Reckoning …" : "What would it take?"}
        </button>
        <button type="submit" class="primary" aria-disabled={waits}>
          Create the job
        </button>
      </div>
      {estimate && <EstimateView estimate={estimate} />}
    </form>
  );
}
