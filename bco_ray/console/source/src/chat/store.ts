/** The conversation of this tab. It outlives the page that shows it, so that one can look at a job meanwhile. */

import { useEffect, useState } from "preact/hooks";
import { inWords, post, stream, wasAborted } from "../api.ts";
import { say } from "../parts/live.tsx";
import { Intents } from "../parts/intents.ts";
import { onForget, voter } from "../session.ts";
import {
  anew, ballot, ballots, canBeRetried, ended, grown, messagesOf, newTurn, outcomeOf, saidIn, type Answer, type Chunk, type Turn,
  type Verdict, type Vote,
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
let asked = 0;
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
  const turn = newTurn((asked += 1), prompt, models, Math.random() < 0.5);
  const messages = messagesOf(settings.system, turns, prompt);
  running = new AbortController();
  publish({ ...talk, turns: [...turns, turn] });
  await Promise.all(turn.answers.map((answer, index) => follow(turn.id, index, bodyOf(settings, answer, messages))));
  tellOf(turn.id);
}

/** Once more what did not come to its end, with the settings of now. */
export async function askAgain(id: number, index: number): Promise<void> {
  const { settings, turns } = talk;
  const at = turns.findIndex((turn) => turn.id === id);
  const turn = turns[at];
  const answer = turn?.answers[index];
  if (!turn || !answer || !canBeRetried(answer)) return;
  if (running.signal.aborted) running = new AbortController();
  change(id, index, anew);
  await follow(id, index, bodyOf(settings, answer, messagesOf(settings.system, turns.slice(0, at), turn.prompt)));
  tellOf(id, index);
}

/**
 * A thumb, or null to take it back; with `words` if they are new, else with those that were said before. One at a time:
 * while one is on its way another is none (false). Throws what the server says.
 */
export async function vote(id: number, index: number, label: boolean | null, words?: { comment: string; correction: string }): Promise<boolean> {
  const answer = turnOf(id)?.answers[index];
  if (!answer?.id || answer.voting) return false;
  const { comment, correction } = words ?? {};
  const fresh = words && { comment: comment?.trim() ? comment : undefined, correction: correction?.trim() ? correction : undefined };
  const body = ballot(answer, label, { ...answer.said, ...fresh }, voter());
  changeAnswer(id, body.response_id, (one) => ({ ...one, voting: true }));
  try {
    await cast(id, body);
    votes.done(body.response_id);
  } finally {
    changeAnswer(id, body.response_id, ({ voting: _, ...one }) => one);
  }
  return true;
}

/**
 * The vote of a comparison; afterwards it is shown who was who, unless one of the two was not stored: that is thrown, and
 * the next verdict is asked for again. While one is on its way another is none (false).
 */
export async function judge(id: number, verdict: Verdict): Promise<boolean> {
  const turn = turnOf(id);
  if (!turn || turn.judging || !turn.blind) return false;
  const cards = ballots(turn, verdict, voter());
  patch(id, { judging: true });
  const outcomes = await Promise.allSettled(cards.map((card) => cast(id, card)));
  const failed = outcomes.find((one) => one.status === "rejected");
  const known = { unsure: false, blind: false, chosen: verdict === "second" ? 1 : 0 };
  patch(id, { judging: false, ...(failed ? { unsure: true } : known) });
  if (failed) throw new Error(`${outcomeOf(turnOf(id) ?? turn)} ${inWords(failed.reason)} Choose again, and both are sent.`);
  for (const card of cards) votes.done(card.response_id);
  return true;
}

/** A vote; of one that was sent and not answered the second try is the same vote. */
async function cast(id: number, body: Vote): Promise<void> {
  await post("/v1/feedback", body, { "idempotency-key": votes.key(body.response_id, body) });
  changeAnswer(id, body.response_id, (one) => ({ ...one, label: body.label, said: saidIn(body) }));
}

/** Without a vote. */
export function reveal(id: number): void {
  if (!turnOf(id)?.judging) patch(id, { blind: false });
}

async function follow(id: number, index: number, body: unknown): Promise<void> {
  const signal = running.signal;
  try {
    for await (const chunk of stream<Chunk>("/v1/chat/completions", body, signal)) {
      change(id, index, (one) => grown(one, chunk));
    }
    change(id, index, ended);
  } catch (error) {
    const stopped = signal.aborted || wasAborted(error);
    const state = (one: Answer) => (stopped ? "stopped" : one.id ? "broken" : "failed");
    change(id, index, (one) => ({ ...one, state: state(one), error: stopped ? undefined : inWords(error) }));
  }
}

function tellOf(id: number, index = 0): void {
  const turn = turnOf(id);
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

function turnOf(id: number): Turn | undefined {
  return talk.turns.find((turn) => turn.id === id);
}

/** Nothing, where the conversation was begun anew meanwhile. */
function patch(id: number, changes: Partial<Turn>): void {
  if (turnOf(id)) publish({ ...talk, turns: talk.turns.map((turn) => (turn.id === id ? { ...turn, ...changes } : turn)) });
}

function change(id: number, index: number, how: (answer: Answer) => Answer): void {
  const answers = turnOf(id)?.answers.map((one, place) => (place === index ? how(one) : one));
  if (answers) patch(id, { answers });
}

/** By the answer's own id: it may have been asked for anew, and be another one. */
function changeAnswer(id: number, answer: string, how: (answer: Answer) => Answer): void {
  const index = turnOf(id)?.answers.findIndex((one) => one.id === answer) ?? -1;
  if (index >= 0) change(id, index, how);
}

function publish(next: Talk): void {
  talk = next;
  for (const listener of listeners) listener();
}
