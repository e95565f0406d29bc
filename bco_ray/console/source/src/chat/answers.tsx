/** Answers, and what one thinks of them. */

import { useEffect, useRef, useState } from "preact/hooks";
import { inWords } from "../api.ts";
import { Field, Trouble } from "../parts/basics.tsx";
import { askAgain, judge, reveal, vote } from "./store.ts";
import { canBeJudged, canBeRetried, isOpen, outcomeOf, type Answer, type Turn, type Verdict } from "./turns.ts";

const VERDICTS: [Verdict, string][] = [
  ["first", "A is better"],
  ["second", "B is better"],
  ["both", "Both are good"],
  ["neither", "Both are bad"],
];

/** An answer, and where it stands: the id of its turn, and its place there. */
interface Place {
  answer: Answer;
  turn: number;
  index: number;
}

export function OneAnswer({ title, ...place }: Place & { title?: string }) {
  const { answer } = place;
  return (
    <div class="answer">
      <p class="by">{title ? `${title}: ${answer.model ?? answer.asked}` : (answer.model ?? answer.asked)}</p>
      <Words {...place} />
      {!isOpen(answer) && answer.id && <Thumbs key={answer.id} {...place} />}
    </div>
  );
}

/** Two answers side by side; as long as nobody has voted they have no names. */
export function Comparison({ turn }: { turn: Turn }) {
  const [error, setError] = useState<string | null>(null);
  const busy = turn.judging === true;
  const [told, setTold] = useState("");
  const outcome = useRef<HTMLParagraphElement>(null);
  useEffect(() => outcome.current?.focus(), [told]); // the buttons, of which one had the focus, are gone
  const decide = async (verdict: Verdict) => {
    if (busy) return;
    setError(null);
    try {
      if (await judge(turn.id, verdict)) setTold("Your votes are saved.");
    } catch (problem) {
      setError(inWords(problem));
    }
  };
  const show = () => {
    if (busy) return;
    reveal(turn.id);
    setError(null);
    setTold(outcomeOf(turn));
  };
  return (
    <>
      <div class="pair">
        {turn.answers.map((answer, index) =>
          turn.blind ? (
            <div class="answer" key={index}>
              <p class="by">Answer {"AB"[index]}</p>
              <Words answer={answer} turn={turn.id} index={index} />
            </div>
          ) : (
            <OneAnswer key={index} answer={answer} turn={turn.id} index={index} title={`Answer ${"AB"[index]}`} />
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
            {turn.unsure ? "Show who is who" : "Show who is who, without a vote"}
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

function Words({ answer, turn, index }: Place) {
  const words = useRef<HTMLDivElement>(null);
  const again = () => {
    words.current?.focus(); // the button goes away
    void askAgain(turn, index);
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

function Thumbs({ answer, turn, index }: Place) {
  const [error, setError] = useState<string | null>(null);
  const [withdrawn, setWithdrawn] = useState(false);
  const { comment, correction } = answer.said ?? {};
  const saved = typeof answer.label !== "boolean" ? "" : comment || correction ? "Saved with your words." : "Saved.";
  const cast = async (label: boolean | null, words?: Spoken) => {
    setError(null);
    try {
      if (await vote(turn, index, label, words)) setWithdrawn(label === null);
    } catch (problem) {
      setError(inWords(problem));
    }
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
          {withdrawn ? "The vote is taken back." : saved}
        </span>
      </div>
      <Trouble error={error} />
      {typeof answer.label === "boolean" && (
        <Remark busy={answer.voting === true} saved={{ comment, correction }} onSend={(words) => cast(answer.label!, words)} />
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

interface Spoken {
  comment: string;
  correction: string;
}

/** Begins with what was saved before: saving it again is saying all of it anew. */
function Remark({ busy, saved, onSend }: { busy: boolean; saved: Partial<Spoken>; onSend: (words: Spoken) => Promise<void> }) {
  const [comment, setComment] = useState(saved.comment ?? "");
  const [correction, setCorrection] = useState(saved.correction ?? "");
  const send = (event: Event) => {
    event.preventDefault();
    if (!busy) void onSend({ comment, correction });
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
        <button type="submit" disabled={!(comment.trim() || correction.trim() || saved.comment || saved.correction)} aria-disabled={busy}>
          Save with the vote
        </button>
      </form>
    </details>
  );
}
