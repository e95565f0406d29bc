/** The conversation of this tab. It outlives the page that shows it, so that one can look at a job meanwhile. */

import { useEffect, useState } from "preact/hooks";
import { inWords, post, stream, wasAborted } from "../api.ts";
import { say } from "../parts/live.tsx";
import { Intents } from "../parts/intents.ts";
import { onForget, voter } from "../session.ts";
import {
  anew, ballots, canBeRetried, ended, grown, LABELS, messagesOf, newTurn, type Answer, type Chunk, type Turn, type Verdict,
  type Vote,
} from "./turns.ts";

export interface Settings {
  model: string;
  other: string;
  compare: boolean;
  system: string;
  temperature: string;
  max_tokens: string;
}

interface Talk {
  turns: Turn[];
  settings: Settings;
}

const NOTHING: Talk = {
  turns: [],
  settings: { model: "", other: "", compare: false, system: "", temperature: "", max_tokens: "" },
};
let talk = NOTHING;
let running = new AbortController();
const votes = new Intents();
const listeners = new Set<() => void>();

export function current(): Talk {
  return talk;
}

export function useTalk(): Talk {
  const [, setTurn] = useState(0);
  useEffect(() => {
    const follow = () => setTurn((before) => before + 1);
    listeners.add(follow);
    return () => void listeners.delete(follow);
  }, []);
  return talk;
}

export function set(changes: Partial<Settings>): void {
  publish({ ...talk, settings: { ...talk.settings, ...changes } });
}

export function startAnew(): void {
  stop();
  publish({ ...talk, turns: [] });
}

export function stop(): void {
  running.abort();
}

onForget(() => {
  stop();
  votes.clear();
  publish(NOTHING);
});

/** Ask, and return once every answer is there, or has failed. */
export async function ask(prompt: string): Promise<void> {
  const { settings, turns } = talk;
  const models = settings.compare ? [settings.model, settings.other] : [settings.model];
  const turn = newTurn(prompt, models, Math.random() < 0.5);
  const messages = messagesOf(settings.system, turns, prompt);
  const at = turns.length;
  running = new AbortController();
  publish({ ...talk, turns: [...turns, turn] });
  await Promise.all(turn.answers.map((answer, index) => follow(at, index, bodyOf(settings, answer, messages))));
  tellOf(at);
}

/** Once more what did not come to its end, with the settings of now. */
export async function askAgain(at: number, index: number): Promise<void> {
  const { settings, turns } = talk;
  const turn = turns[at];
  const answer = turn?.answers[index];
  if (!turn || !answer || !canBeRetried(answer)) return;
  if (running.signal.aborted) running = new AbortController();
  change(at, index, anew);
  await follow(at, index, bodyOf(settings, answer, messagesOf(settings.system, turns.slice(0, at), turn.prompt)));
  tellOf(at, index);
}

/** A thumb, or null to take it back, with a word perhaps. Throws what the server says. */
export async function vote(at: number, index: number, label: boolean | null, comment = "", correction = ""): Promise<void> {
  const answer = talk.turns[at]?.answers[index];
  if (!answer?.id) return;
  const words = { ...(comment.trim() && { comment }), ...(correction.trim() && { correction }) };
  const body = { response_id: answer.id, label, feedback_token: answer.token, user: voter(), source: "console", ...words };
  await cast(body);
  votes.done(body.response_id);
  change(at, index, (one) => ({ ...one, label }));
}

/** The vote of a comparison; afterwards it is shown who was who. Throws what the server says. */
export async function judge(at: number, verdict: Verdict): Promise<void> {
  const turn = talk.turns[at];
  if (!turn) return;
  const cards = ballots(turn, verdict, voter());
  await Promise.all(cards.map(cast));
  for (const card of cards) votes.done(card.response_id);
  const answers = turn.answers.map((answer, index) => ({ ...answer, label: LABELS[verdict][index as 0 | 1] }));
  replace(at, { ...turn, answers, blind: false, chosen: verdict === "second" ? 1 : 0 });
}

/** A vote; of one that was sent and not answered the second try is the same vote. */
async function cast(body: Vote): Promise<void> {
  await post("/v1/feedback", body, { "idempotency-key": votes.key(body.response_id, body) });
}

/** Without a vote. */
export function reveal(at: number): void {
  const turn = talk.turns[at];
  if (turn) replace(at, { ...turn, blind: false });
}

async function follow(at: number, index: number, body: unknown): Promise<void> {
  const signal = running.signal;
  try {
    for await (const chunk of stream<Chunk>("/v1/chat/completions", body, signal)) {
      change(at, index, (one) => grown(one, chunk));
    }
    change(at, index, ended);
  } catch (error) {
    const stopped = signal.aborted || wasAborted(error);
    const state = (one: Answer) => (stopped ? "stopped" : one.id ? "broken" : "failed");
    change(at, index, (one) => ({ ...one, state: state(one), error: stopped ? undefined : inWords(error) }));
  }
}

function tellOf(at: number, index = 0): void {
  const turn = talk.turns[at];
  if (!turn) return;
  const whole = turn.answers.every((answer) => !canBeRetried(answer));
  if (turn.blind) say(whole ? "Both answers are there." : "Not both answers are whole.");
  else say(spoken(turn.answers[index]));
}

function bodyOf(settings: Settings, answer: Answer, messages: unknown): unknown {
  const { temperature, max_tokens } = settings;
  return {
    model: answer.asked,
    messages,
    stream: true,
    user: voter(),
    ...(temperature !== "" && { temperature: Number(temperature) }),
    ...(max_tokens !== "" && { max_tokens: Number(max_tokens) }),
  };
}

function spoken(answer: Answer | undefined): string {
  if (!answer || answer.state === "failed") return "There is no answer.";
  if (answer.state === "broken") return "The answer broke off.";
  if (answer.state === "stopped") return "The answer was stopped.";
  return `${answer.model ?? answer.asked} answered: ${answer.text.slice(0, 500)}`;
}

function change(at: number, index: number, how: (answer: Answer) => Answer): void {
  const turn = talk.turns[at];
  if (!turn) return; // the conversation was begun anew meanwhile
  replace(at, { ...turn, answers: turn.answers.map((one, place) => (place === index ? how(one) : one)) });
}

function replace(at: number, turn: Turn): void {
  publish({ ...talk, turns: talk.turns.map((one, place) => (place === at ? turn : one)) });
}

function publish(next: Talk): void {
  talk = next;
  for (const listener of listeners) listener();
}
