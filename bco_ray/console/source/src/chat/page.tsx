import type { TargetedEvent, TargetedKeyboardEvent } from "preact";
import { useEffect, useRef, useState } from "preact/hooks";
import { get, type Page } from "../api.ts";
import { Field, Heading, Nothing, Pending } from "../parts/basics.tsx";
import { say } from "../parts/live.tsx";
import { useLoaded } from "../parts/loaded.ts";
import { Comparison, OneAnswer } from "./answers.tsx";
import { ask, set, startAnew, stop, useTalk, type Settings } from "./store.ts";
import { chosenOf, isOpen, namesOf, type Served, type Turn } from "./turns.ts";

export function ChatPage() {
  const { turns, settings } = useTalk();
  const models = useLoaded(async (signal) => (await get<Page<Served>>("/v1/models", signal)).data, []);
  const served = models.value ?? [];
  const names = namesOf(served.map((model) => model.id));
  useEffect(() => {
    if (names.length) set(chosenOf(names, served, settings));
  }, [models.value]);
  const begin = () => {
    document.querySelector<HTMLElement>(".composer textarea")?.focus(); // the button goes away
    startAnew();
    say("A new conversation.");
  };
  const clear = turns.length > 0 && (
    <button type="button" onClick={begin}>
      New conversation
    </button>
  );
  return (
    <>
      <Heading actions={clear}>Chat</Heading>
      <Pending of={models} what="models" />
      <Choices names={names} settings={settings} />
      <ol class="turns" aria-label="Conversation">
        {turns.map((turn, at) => (
          <li key={turn.id}>
            <TurnView turn={turn} at={at} />
          </li>
        ))}
      </ol>
      {models.value && !names.length && <Nothing>No model is served.</Nothing>}
      {turns.length === 0 && names.length > 0 && (
        <Nothing>Ask something. A thumb on an answer is a vote that the next training learns from.</Nothing>
      )}
      <Composer busy={turns.some((turn) => turn.answers.some(isOpen))} ready={settings.model !== ""} />
    </>
  );
}

function TurnView({ turn, at }: { turn: Turn; at: number }) {
  const compared = turn.answers.length > 1;
  return (
    <article aria-label={`Question ${at + 1}`}>
      <p class="prompt">
        <span class="unseen">You asked: </span>
        {turn.prompt}
      </p>
      {compared ? <Comparison turn={turn} /> : <OneAnswer answer={turn.answers[0]!} turn={turn.id} index={0} />}
    </article>
  );
}

function Choices({ names, settings }: { names: string[]; settings: Settings }) {
  const pick = (name: "model" | "other", label: string) => (
    <Field
      label={label}
      control={(its) => (
        <select {...its} value={settings[name]} onChange={(event) => set({ [name]: event.currentTarget.value })}>
          {names.map((one) => (
            <option key={one} value={one}>
              {one}
            </option>
          ))}
        </select>
      )}
    />
  );
  return (
    <section class="choices card" aria-label="What is asked">
      <div class="row">
        {pick("model", "Version")}
        {settings.compare && pick("other", "Compared with")}
        <label class="check">
          <input
            type="checkbox"
            checked={settings.compare}
            onChange={(event) => set({ compare: event.currentTarget.checked })}
          />
          Side by side, blind
        </label>
      </div>
      <details>
        <summary>System prompt and sampling</summary>
        <Field
          label="System prompt"
          control={(its) => (
            <textarea {...its} rows={2} value={settings.system} onInput={(event) => set({ system: event.currentTarget.value })} />
          )}
        />
        <div class="row">
          {amount(settings, "temperature", "Temperature", { min: 0, max: 2, step: "any" })}
          {amount(settings, "max_tokens", "Tokens at most", { min: 1, step: 1 })}
        </div>
      </details>
    </section>
  );
}

function amount(settings: Settings, name: "temperature" | "max_tokens", label: string, bounds: { min: number; max?: number; step: number | "any" }) {
  return (
    <Field
      label={label}
      control={(its) => (
        <input
          {...its}
          {...bounds}
          type="number"
          placeholder="the server's default"
          value={settings[name]}
          onInput={(event) => set({ [name]: event.currentTarget.value })}
        />
      )}
    />
  );
}

function Composer({ busy, ready }: { busy: boolean; ready: boolean }) {
  const [text, setText] = useState("");
  const form = useRef<HTMLFormElement>(null);
  const send = (event: TargetedEvent<HTMLFormElement>) => {
    event.preventDefault();
    if (busy || !ready || !text.trim()) return;
    setText("");
    void ask(text);
  };
  const halt = () => {
    form.current?.querySelector("textarea")?.focus(); // the button goes away
    stop();
  };
  const onKeyDown = (event: TargetedKeyboardEvent<HTMLTextAreaElement>) => {
    const composing = event.isComposing || event.keyCode === 229; // Safari tells the end of a composition before its Enter
    if (event.key !== "Enter" || event.shiftKey || composing) return;
    event.preventDefault();
    form.current?.requestSubmit();
  };
  return (
    <form class="composer card" ref={form} onSubmit={send}>
      <Field
        label="Your message"
        help="Enter sends, Shift and Enter begins a new line."
        control={(its) => (
          <textarea {...its} rows={2} value={text} onInput={(event) => setText(event.currentTarget.value)} onKeyDown={onKeyDown} />
        )}
      />
      <div class="actions">
        {busy && (
          <button type="button" onClick={halt}>
            Stop
          </button>
        )}
        <button type="submit" class="primary" disabled={!ready} aria-disabled={busy}>
          Send
        </button>
      </div>
    </form>
  );
}
