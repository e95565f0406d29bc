/** What a job is made of: a model, and votes from somewhere. */

import type { TargetedEvent } from "preact";
import { useRef, useState } from "preact/hooks";
import { get, inWords, upload, type Page } from "../api.ts";
import { Field, Trouble } from "../parts/basics.tsx";
import { say } from "../parts/live.tsx";
import { useLoaded } from "../parts/loaded.ts";

interface Stored {
  id: string;
  filename: string;
}

export function ModelField({ value, error, onChange }: { value: string; error?: string; onChange: (model: string) => void }) {
  const known = useLoaded(
    async (signal) => (await get<Page<{ id: string; versions: { id: string }[] }>>("/v1/registry/models", signal)).data,
    [],
  );
  const names = (known.value ?? []).flatMap((model) => [`${model.id}@prod`, ...model.versions.map((one) => one.id).reverse()]);
  return (
    <Field
      label="Model"
      help={known.error ? `What is registered cannot be listed: ${known.error}` : "A registered version (name/3, name@prod), or a place that the server allows."}
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

interface VotesProps {
  value: string;
  error?: string;
  onChange: (place: string) => void;
  /** Whether a file is on its way. */
  onUploading: (busy: boolean) => void;
}

export function VotesField({ value, error, onChange, onUploading }: VotesProps) {
  const files = useLoaded(async (signal) => (await get<Page<Stored>>("/v1/files?limit=100", signal)).data, []);
  const [problem, setProblem] = useState<string | null>(null);
  const [busy, setBusy] = useState(false);
  const sending = useRef(false);
  const turn = (on: boolean) => {
    sending.current = on;
    setBusy(on);
    onUploading(on);
  };
  const send = async (event: TargetedEvent<HTMLInputElement>) => {
    const input = event.currentTarget;
    const file = input.files?.[0];
    if (!file || sending.current) return;
    turn(true);
    setProblem(null);
    try {
      const stored = await upload<Stored>("/v1/files", file, { purpose: "fine-tune" });
      onChange(stored.id);
      files.again();
      say(`${stored.filename} is uploaded.`);
    } catch (failed) {
      setProblem(inWords(failed));
    }
    input.value = ""; // else the same file could not be chosen once more
    turn(false);
  };
  const hold = (event: Event) => sending.current && event.preventDefault(); // a disabled input would lose the focus
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
        <Field label={busy ? "Uploading …" : "Upload a file of votes"} control={(its) => <input {...its} type="file" aria-disabled={busy} onClick={hold} onChange={send} />} />
      </div>
      <p class="note">{uploaded.filter((file) => file.id === value).map((file) => `${file.id} is ${file.filename}`)}</p>
      <Trouble error={problem} />
      {files.error && <p class="note">The uploads there are cannot be listed: {files.error}</p>}
    </>
  );
}
