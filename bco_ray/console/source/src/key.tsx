/** Asks for the API key once the server has said that it needs one. */

import type { TargetedEvent } from "preact";
import { useEffect, useState } from "preact/hooks";
import { get, inWords } from "./api.ts";
import { Field, Heading, Trouble } from "./parts/basics.tsx";
import { forgetKey, keepKey } from "./session.ts";

export function KeyPage({ why, onKey }: { why: string; onKey: () => void }) {
  const [key, setKey] = useState("");
  const [remember, setRemember] = useState(false);
  const [error, setError] = useState<string | null>(why);
  useEffect(() => setError(why), [why]);
  const [busy, setBusy] = useState(false);
  const enter = async (event: TargetedEvent<HTMLFormElement>) => {
    event.preventDefault();
    if (busy) return;
    if (!key.trim()) return setError("Paste a key; `bco keys create` makes one and shows it once.");
    setBusy(true);
    keepKey(key.trim(), remember);
    try {
      await get("/v1/models");
      onKey();
    } catch (problem) {
      forgetKey();
      setError(inWords(problem));
    } finally {
      setBusy(false);
    }
  };
  return (
    <form class="card narrow" onSubmit={enter}>
      <Heading>API key</Heading>
      <Trouble error={error} />
      <Field
        label="Key"
        help="It begins with sk-bco- and is sent to this server only."
        control={(its) => (
          <input
            {...its}
            type="password"
            autocomplete="off"
            spellcheck={false}
            value={key}
            onInput={(event) => setKey(event.currentTarget.value)}
          />
        )}
      />
      <label class="check">
        <input type="checkbox" checked={remember} onChange={(event) => setRemember(event.currentTarget.checked)} />
        Remember it in this browser (else until this tab is closed)
      </label>
      <button type="submit" class="primary" aria-disabled={busy}>
        Enter
      </button>
    </form>
  );
}
