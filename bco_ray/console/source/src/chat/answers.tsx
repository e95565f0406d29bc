/** Answers, and what one thinks of them. */

import { useEffect, useRef, useState } from "preact/hooks";
import { inWords } from "../api.ts";
import { Field, Trouble } from "../parts/basics.tsx";
import { askAgain, judge, reveal, vote } from "./store.ts";
import { canBeJudged, canBeRetried, isOpen, type Answer, type Turn, type Verdict } from "./turns.ts";

const VERDICTS: [Verdict, string][] = [
  ["first", "A is better"],
  ["second", "B is better"],
  ["both", "Both are good"],
  ["neither", "Both are bad"],
];

export function OneAnswer({ answer, at, index, title }: { answer: Answer; at: number; index: number; title?: string }) {
  return (
    <div class="answer">
      <p class="by">{title ? `${title}: ${answer.model ?? answer.asked}` : (answer.model ?? answer.asked)}</p>
      <Words answer={answer} at={at} index={index} />
      {!isOpen(answer) && answer.id && <Thumbs key={answer.id} answer={answer} at={at} index={index} />}
    </div>
  );
}

/** Two answers side by side; as long as nobody has voted they have no names. */
export function Comparison({ turn, at }: { turn: Turn; at: number }) {
  const [error, setError] = useState<string | null>(null);
  const [busy, setBusy] = useState(false);
  const [told, setTold] = useState("");
  const outcome = useRef<HTMLParagraphElement>(null);
  useEffect(() => outcome.current?.focus(), [told]); // the buttons, of which one had the focus, are gone
  const decide = async (verdict: Verdict) => {
    if (busy) return;
    setBusy(true);
    setError(null);
    try {
      await judge(at, verdict);
      setTold("Your votes are saved.");
    } catch (problem) {
      setError(inWords(problem));
    }
    setBusy(false);
  };
  const show = () => {
    if (busy) return;
    reveal(at);
    setTold("No vote was cast.");
  };
  return (
    <>
      <div class="pair">
        {turn.answers.map((answer, index) =>
          turn.blind ? (
            <div class="answer" key={index}>
              <p class="by">Answer {"AB"[index]}</p>
              <Words answer={answer} at={at} index={index} />
            </div>
          ) : (
            <OneAnswer key={index} answer={answer} at={at} index={index} title={`Answer ${"AB"[index]}`} />
          ),
        )}
      </div>
      {turn.blind && (
        <div class="actions start" role="group" aria-label="Which answer is better?">
          {VERDICTS.map(([verdict, words]) => (
            <button key={verdict} type="button" disabled={!canBeJudged(turn)} aria-disabled={busy} onClick={() => decide(verdict)}>
              {words}
            </button>
          ))}
          <button type="button" class="quiet" disabled={turn.answers.some(isOpen)} aria-disabled={busy} onClick={show}>
            Show who is who, without a vote
          </button>
        </div>
      )}
      {!turn.blind && told && (
        <p class="note" tabIndex={-1} ref={outcome}>
          {told} {turn.answers.map((answer, index) => `Answer ${"AB"[index]} is by ${answer.model ?? answer.asked}.`).join(" ")}
        </p>
      )}
      <Trouble error={error} />
    </>
  );
}

function Words({ answer, at, index }: { answer: Answer; at: number; index: number }) {
  const words = useRef<HTMLDivElement>(null);
  const again = () => {
    words.current?.focus(); // the button goes away
    void askAgain(at, index);
  };
  return (
    <>
      <div class="words" ref={words} tabIndex={-1} aria-busy={isOpen(answer)}>
        {answer.text}
        {isOpen(answer) && <span class="cursor" aria-hidden="true" />}
      </div>
      {answer.state === "failed" && <Trouble error={answer.error ?? "There is no answer."} />}
      {answer.state === "broken" && <Trouble error={`The answer broke off: ${answer.error ?? "the server did not bring it to its end."}`} />}
      {answer.state === "stopped" && <p class="note">Stopped. What there is can be voted on, and is not trained on.</p>}
      {answer.finish === "length" && <p class="note">Cut off at the most tokens.</p>}
      {canBeRetried(answer) && answer.label === undefined && (
        <button type="button" onClick={again}>
          Ask again
        </button>
      )}
    </>
  );
}

function Thumbs({ answer, at, index }: { answer: Answer; at: number; index: number }) {
  const [error, setError] = useState<string | null>(null);
  const [busy, setBusy] = useState(false);
  const [saved, setSaved] = useState("");
  const cast = async (label: boolean | null, comment = "", correction = "") => {
    if (busy) return;
    setBusy(true);
    setError(null);
    try {
      await vote(at, index, label, comment, correction);
      setSaved(label === null ? "The vote is taken back." : comment || correction ? "Saved with your words." : "Saved.");
    } catch (problem) {
      setError(inWords(problem));
    }
    setBusy(false);
  };
  const thumb = (label: boolean, name: string) => (
    <button
      type="button"
      class="thumb"
      aria-pressed={answer.label === label}
      aria-label={name}
      title={name}
      onClick={() => cast(answer.label === label ? null : label)}
    >
      <ThumbSign down={!label} />
    </button>
  );
  return (
    <div class="vote">
      <div class="actions start">
        {thumb(true, "Thumb up")}
        {thumb(false, "Thumb down")}
        <span class="note" role="status">
          {saved || (typeof answer.label === "boolean" ? "Saved." : "")}
        </span>
      </div>
      <Trouble error={error} />
      {typeof answer.label === "boolean" && (
        <Remark busy={busy} onSend={(comment, correction) => cast(answer.label!, comment, correction)} />
      )}
    </div>
  );
}

function ThumbSign({ down }: { down: boolean }) {
  return (
    <svg viewBox="0 0 24 24" width="20" height="20" aria-hidden="true" transform={down ? "rotate(180)" : undefined}>
      <path
        d="M7 11v9H3v-9zm0 0 4-8c1.7 0 2.7 1.3 2.4 3L13 9h6a2 2 0 0 1 2 2.4l-1.4 7A2 2 0 0 1 17.600 20H7"
        fill="none"
        stroke="currentColor"
        stroke-width="1.8"
        stroke-linejoin="round"
      />
    </svg>
  );
}

function Remark({ busy, onSend }: { busy: boolean; onSend: (comment: string, correction: string) => Promise<void> }) {
  const [comment, setComment] = useState("");
  const [correction, setCorrection] = useState("");
  const send = (event: Event) => {
    event.preventDefault();
    void onSend(comment, correction);
  };
  const area = (label: string, most: number, value: string, change: (text: string) => void) => (
    <Field
      label={label}
      control={(its) => (
        <textarea {...its} rows={2} maxLength={most} value={value} onInput={(event) => change(event.currentTarget.value)} />
      )}
    />
  );
  return (
    <details>
      <summary>Add a comment or a correction</summary>
      <form onSubmit={send}>
        {area("Comment", 4096, comment, setComment)}
        {area("What it should have said", 65536, correction, setCorrection)}
        <button type="submit" disabled={!(comment.trim() || correction.trim())} aria-disabled={busy}>
          Save with the vote
        </button>
      </form>
    </details>
  );
}
