/** What a conversation is: turns of a question and its answers. Pure. */

export interface Answer {
  /** What was asked for, which may be an alias; `model` is the version that answered. */
  asked: string;
  text: string;
  /** `broken`: some of it came, and no end. */
  state: "waiting" | "streaming" | "done" | "stopped" | "broken" | "failed";
  id?: string;
  token?: string;
  model?: string;
  finish?: string;
  error?: string;
  label?: boolean | null;
  /** What goes along with every vote on it: the last one counts, whole. */
  said?: Said;
  /** A vote on it is on its way. */
  voting?: boolean;
}

/** A person's words, and of a comparison's vote where it comes from. */
export interface Said {
  comment?: string;
  correction?: string;
  tags?: string[];
  metadata?: Record<string, string>;
}

export interface Turn {
  id: number;
  prompt: string;
  /** One, or two of a blind comparison in the order in which they are shown. */
  answers: Answer[];
  /** Of a comparison: not voted on yet, so nobody may see who is who. */
  blind: boolean;
  /** A verdict is on its way. */
  judging?: boolean;
  /** One did not come through, and perhaps one of its votes did. */
  unsure?: boolean;
  /** Which answer the conversation goes on from. */
  chosen: number;
}

export interface Message {
  role: "system" | "user" | "assistant";
  content: string;
}

export interface Chunk {
  id: string;
  model: string;
  feedback_token?: string | null;
  choices: { delta: { content?: string | null }; finish_reason: string | null }[];
}

export interface Vote extends Said {
  response_id: string;
  label: boolean | null;
  feedback_token?: string;
  user: string;
  source: string;
}

export function newTurn(id: number, prompt: string, models: string[], swapped: boolean): Turn {
  const asked = swapped ? [...models].reverse() : models;
  const answers = asked.map((one): Answer => ({ asked: one, text: "", state: "waiting" }));
  return { id, prompt, answers, blind: models.length > 1, chosen: 0 };
}

/** An answer and some more of it. */
export function grown(answer: Answer, chunk: Chunk): Answer {
  const [choice] = chunk.choices;
  return {
    ...answer,
    id: chunk.id,
    model: chunk.model,
    token: chunk.feedback_token ?? answer.token,
    text: answer.text + (choice?.delta.content ?? ""),
    finish: choice?.finish_reason ?? answer.finish,
    state: choice?.finish_reason === ABORTED ? "broken" : choice?.finish_reason || answer.state === "done" ? "done" : "streaming",
  };
}

/** The server's word for an answer that the engine did not bring to an end. */
const ABORTED = "abort";

/** An answer whose stream is over, whether it said so or not. */
export function ended(answer: Answer): Answer {
  if (!isOpen(answer)) return answer;
  return answer.id ? { ...answer, state: "broken" } : { ...answer, state: "failed", error: "The server sent no answer." };
}

/** An answer to be asked for anew. */
export function anew({ asked }: Answer): Answer {
  return { asked, text: "", state: "waiting" };
}

export function canBeRetried(answer: Answer): boolean {
  return answer.state === "broken" || answer.state === "failed" || answer.state === "stopped";
}

export function isOpen(answer: Answer): boolean {
  return answer.state === "waiting" || answer.state === "streaming";
}

/** What the model reads: turns without a whole answer are left out; what was stopped was enough. */
export function messagesOf(system: string, turns: Turn[], prompt: string): Message[] {
  const said: Message[] = system.trim() ? [{ role: "system", content: system }] : [];
  for (const turn of turns) {
    const answer = turn.answers[turn.chosen];
    if (!answer || answer.state === "failed" || answer.state === "broken" || !answer.text) continue;
    said.push({ role: "user", content: turn.prompt }, { role: "assistant", content: answer.text });
  }
  return [...said, { role: "user", content: prompt }];
}

export type Verdict = "first" | "second" | "both" | "neither";

/** What each of two answers gets, in their order. */
export const LABELS: Record<Verdict, [boolean, boolean]> = {
  first: [true, false],
  second: [false, true],
  both: [true, true],
  neither: [false, false],
};

/** A vote; taken back it says nothing but that. */
export function ballot(answer: Answer, label: boolean | null, said: Said, user: string): Vote {
  const token = answer.token && { feedback_token: answer.token };
  return { response_id: answer.id ?? "", label, ...token, user, source: "console", ...(label === null ? {} : said) };
}

/** Thumbs of a comparison; each says in its metadata what it was compared with. */
export function ballots(turn: Turn, verdict: Verdict, user: string): Vote[] {
  return turn.answers.map((answer, index) => {
    const other = turn.answers[1 - index];
    const metadata = { compared_with: other?.id ?? "", compared_with_model: other?.model ?? "", verdict };
    return ballot(answer, LABELS[verdict][index as 0 | 1], { tags: ["side-by-side"], metadata }, user);
  });
}

/** Of a vote what goes along with the next one, too. */
export function saidIn({ comment, correction, tags, metadata }: Vote): Said {
  return { ...(comment && { comment }), ...(correction && { correction }), ...(tags && { tags }), ...(metadata && { metadata }) };
}

/** What became of a comparison once its versions are shown. */
export function outcomeOf(turn: Turn): string {
  const saved = turn.answers.filter((answer) => typeof answer.label === "boolean").length;
  if (!turn.unsure) return saved ? "Your votes are saved." : "No vote was cast.";
  return saved === 1 ? "Only one of the two votes is known to be saved." : "Not both votes are known to be saved.";
}

/** Of two answers that can both be voted on. */
export function canBeJudged(turn: Turn): boolean {
  return turn.blind && turn.answers.every((answer) => answer.id && (answer.state === "done" || answer.state === "stopped"));
}

/** `name/3`, `name@prod`, and the bare names that go with `@prod` (the only ones that a canary touches). */
export function namesOf(ids: string[]): string[] {
  const bare = ids.filter((id) => id.endsWith("@prod")).map((id) => id.slice(0, -"@prod".length));
  return [...new Set([...bare, ...ids])];
}

/** A name and the version that it means. */
export interface Served {
  id: string;
  root: string;
}

/** What was chosen, as far as it is still served; to compare with, another version if there is one. */
export function chosenOf(names: string[], served: Served[], { model, other }: { model: string; other: string }) {
  const first = names.includes(model) ? model : (names[0] ?? "");
  const meant = served.find((one) => one.id === first || one.id === `${first}@prod`)?.root;
  const second = served.findLast((one) => one.root !== meant && one.id === one.root)?.id ?? names[0] ?? "";
  return { model: first, other: names.includes(other) ? other : second };
}
