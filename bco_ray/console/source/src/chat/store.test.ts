import { beforeEach, expect, test, vi } from "vitest";
import { signOut } from "../session.ts";
import { ask, askAgain, current, judge, reveal, set, startAnew, stop, vote } from "./store.ts";
import { outcomeOf } from "./turns.ts";

interface Sent {
  path: string;
  body: Record<string, unknown>;
  key: string | null;
  signal: AbortSignal | null;
}

let sent: Sent[];
let answers: ((request: Sent) => Response | Promise<Response>)[];

const events = (...said: unknown[]) => said.map((one) => `data: ${typeof one === "string" ? one : JSON.stringify(one)}\n\n`).join("");
const chunk = (content: string | null, finish: string | null = null) => ({
  id: "chatcmpl-1", model: "bot/1", feedback_token: finish && "t", choices: [{ delta: { content }, finish_reason: finish }],
});
const streamed = (...said: unknown[]) => () => new Response(events(...said));
const whole = streamed(chunk("Hello"), chunk(null, "stop"), "[DONE]");
const away = () => Promise.reject(new TypeError("Failed to fetch"));
const stored = () => Response.json({ id: "fb-1" });
const first = () => current().turns[0]!;
const only = () => first().answers[0]!;
/** Of the votes that were sent the parts that say something. */
const said = () =>
  sent.filter(({ path }) => path === "/v1/feedback").map(({ body }) => {
    const { response_id, label, comment, correction, tags, metadata } = body;
    return JSON.parse(JSON.stringify({ response_id, label, comment, correction, tags, metadata }));
  });
const other = streamed({ ...chunk("Hallo", "stop"), id: "chatcmpl-2", model: "bot/2" }, "[DONE]");
/** An answer that comes when it is told to. */
function held(answer: () => Response = stored) {
  let release = () => {};
  const promise = new Promise<Response>((resolve) => (release = () => resolve(answer())));
  return { answer: () => promise, release: () => release() };
}

beforeEach(() => {
  sent = [];
  answers = [];
  const kept = new Map<string, string>();
  const storage = {
    getItem: (name: string) => kept.get(name) ?? null,
    setItem: (name: string, value: string) => void kept.set(name, value),
    removeItem: (name: string) => void kept.delete(name),
  };
  vi.stubGlobal("localStorage", storage);
  vi.stubGlobal("sessionStorage", storage);
  vi.stubGlobal("document", { documentElement: { dataset: {} } });
  vi.stubGlobal("requestAnimationFrame", () => 0);
  vi.stubGlobal("fetch", async (path: string, { body, headers, signal }: RequestInit) => {
    const request = { path, body: JSON.parse(String(body)), key: new Headers(headers).get("idempotency-key"), signal: signal ?? null };
    sent.push(request);
    return answers.shift()!(request);
  });
  startAnew();
  set({ model: "bot", other: "bot/2", compare: false });
});

test("a stream that ends without an end is told to be broken, and asked for anew", async () => {
  answers = [streamed(chunk("Hel")), whole];
  await ask("Hi?");
  expect(only()).toMatchObject({ text: "Hel", state: "broken" });
  await askAgain(first().id, 0);
  expect(only()).toMatchObject({ text: "Hello", state: "done" });
  expect(sent.map((one) => one.body.messages)).toEqual(Array(2).fill([{ role: "user", content: "Hi?" }]));
  await askAgain(first().id, 0);
  expect(sent).toHaveLength(2);
});

test("an error in the middle is told, and what there is stays", async () => {
  answers = [streamed(chunk("Hel"), { error: { message: "The engine died.", code: null, param: null } })];
  await ask("Hi?");
  expect(only()).toMatchObject({ text: "Hel", state: "broken", error: "The engine died." });
});

test("what is stopped is stopped, also on the network", async () => {
  answers = [
    ({ signal }) => {
      const body = new ReadableStream<Uint8Array>({
        start(controller) {
          controller.enqueue(new TextEncoder().encode(events(chunk("Hel"))));
          signal!.addEventListener("abort", () => controller.error(new DOMException("aborted", "AbortError")));
        },
      });
      return new Response(body);
    },
  ];
  const asking = ask("Hi?");
  await vi.waitFor(() => expect(only().text).toBe("Hel"));
  stop();
  await asking;
  expect(sent[0]!.signal!.aborted).toBe(true);
  expect(only()).toMatchObject({ text: "Hel", state: "stopped" });
});

test("a vote that got no answer is the same vote when it is tried again, and a new one once it is done", async () => {
  answers = [whole, away, stored, stored];
  await ask("Hi?");
  await expect(vote(first().id, 0, true)).rejects.toThrow("The server does not answer");
  expect(only().label).toBeUndefined();
  await vote(first().id, 0, true);
  expect(only().label).toBe(true);
  await vote(first().id, 0, true, { comment: "well said", correction: "" });
  const [once, again, third] = sent.slice(1).map((one) => one.key);
  expect(once).toBe(again);
  expect(third).not.toBe(again);
});

test("of a comparison one vote of which got no answer neither is cast twice", async () => {
  set({ compare: true });
  answers = [whole, other, stored, away, stored, stored];
  await ask("Hi?");
  await expect(judge(first().id, "first")).rejects.toThrow("The server does not answer");
  expect(first().blind).toBe(true);
  await judge(first().id, "first");
  expect(current().turns[0]).toMatchObject({ blind: false, answers: [{ label: true }, { label: false }] });
  const keys = sent.slice(2).map((one) => one.key);
  expect(keys.slice(0, 2)).toEqual(keys.slice(2));
});

test("what was said of an answer goes along with every later vote, and is gone once the vote is taken back", async () => {
  answers = [whole, ...Array(5).fill(stored)];
  await ask("Hi?");
  const { id } = first();
  await vote(id, 0, true);
  await vote(id, 0, true, { comment: "", correction: "Good morning" });
  await vote(id, 0, false);
  expect(only().said).toEqual({ correction: "Good morning" });
  await vote(id, 0, null);
  await vote(id, 0, true);
  const one = { response_id: "chatcmpl-1" };
  expect(said()).toEqual([
    { ...one, label: true },
    { ...one, label: true, correction: "Good morning" },
    { ...one, label: false, correction: "Good morning" },
    { ...one, label: null },
    { ...one, label: true },
  ]);
});

test("words on an answer of a comparison leave it a vote of that comparison", async () => {
  set({ compare: true });
  answers = [whole, other, stored, stored, stored];
  await ask("Hi?");
  await judge(first().id, "first");
  const at = first().answers.findIndex((answer) => answer.id === "chatcmpl-1");
  await vote(first().id, at, true, { comment: "clear", correction: "" });
  const votes = said();
  const before = votes.find((vote) => vote.response_id === "chatcmpl-1");
  expect(before).toMatchObject({ tags: ["side-by-side"], metadata: { compared_with: "chatcmpl-2", compared_with_model: "bot/2", verdict: "first" } });
  expect(votes[2]).toEqual({ ...before, label: true, comment: "clear" });
});

test("of a comparison one vote of which is stored the page says so, and not that none was cast", async () => {
  set({ compare: true });
  answers = [whole, other, stored, away];
  await ask("Hi?");
  await expect(judge(first().id, "both")).rejects.toThrow("Only one of the two votes is known to be saved. The server does not answer");
  expect(first().answers.map((answer) => answer.label)).toEqual([true, undefined]);
  expect(outcomeOf(first())).toBe("Only one of the two votes is known to be saved.");
  answers = [away, away];
  await expect(judge(first().id, "neither")).rejects.toThrow("Only one of the two votes is known to be saved");
  reveal(first().id);
  expect(first()).toMatchObject({ blind: false, answers: [{ label: true }, {}] });
  startAnew();
  answers = [whole, other, away, away];
  await ask("Hi?");
  expect(outcomeOf(first())).toBe("No vote was cast.");
  await expect(judge(first().id, "both")).rejects.toThrow("Not both votes are known to be saved.");
});

test("while a verdict is on its way another one is none", async () => {
  set({ compare: true });
  const [one, two] = [held(), held()];
  answers = [whole, other, one.answer, two.answer];
  await ask("Hi?");
  const judging = judge(first().id, "first");
  expect(await judge(first().id, "second")).toBe(false);
  reveal(first().id);
  expect(first().blind).toBe(true);
  two.release();
  one.release();
  expect(await judging).toBe(true);
  expect(first()).toMatchObject({ blind: false, answers: [{ label: true }, { label: false }] });
  expect(said()).toHaveLength(2);
});

test("while a thumb is on its way another one is none", async () => {
  const one = held();
  answers = [whole, one.answer, stored];
  await ask("Hi?");
  const voting = vote(first().id, 0, true);
  expect(only().voting).toBe(true);
  expect(await vote(first().id, 0, false)).toBe(false);
  one.release();
  await voting;
  expect(only()).toMatchObject({ label: true });
  expect(only().voting).toBeUndefined();
});

test("what comes late is not applied to the next conversation", async () => {
  const [thumb, left, right] = [held(), held(), held()];
  const next = streamed({ ...chunk("Next", "stop"), id: "chatcmpl-3" }, "[DONE]");
  answers = [whole, thumb.answer];
  await ask("Hi?");
  const voting = vote(first().id, 0, true);
  startAnew();
  answers.push(next);
  await ask("And now?");
  thumb.release();
  await voting;
  expect(only()).toMatchObject({ text: "Next", state: "done" });
  expect([only().label, only().said, only().voting]).toEqual([undefined, undefined, undefined]);

  startAnew();
  set({ compare: true });
  answers = [whole, other, left.answer, right.answer];
  await ask("Hi?");
  const judging = judge(first().id, "second");
  startAnew();
  answers.push(next, next);
  await ask("And now?");
  left.release();
  right.release();
  await judging;
  expect(first()).toMatchObject({ prompt: "And now?", blind: true, chosen: 0 });
  expect(first().answers.map((answer) => answer.label)).toEqual([undefined, undefined]);
});

test("a stream that goes on after a new conversation was begun writes nowhere", async () => {
  let feed!: ReadableStreamDefaultController<Uint8Array>;
  const encoded = (said: unknown) => new TextEncoder().encode(events(said));
  answers = [() => new Response(new ReadableStream<Uint8Array>({ start: (controller) => void (feed = controller) }))];
  const asking = ask("Hi?");
  await vi.waitFor(() => expect(sent).toHaveLength(1));
  feed.enqueue(encoded(chunk("Hel")));
  await vi.waitFor(() => expect(only().text).toBe("Hel"));
  startAnew();
  answers = [whole];
  await ask("And now?");
  feed.enqueue(encoded(chunk("lo, late", "stop")));
  feed.close();
  await asking;
  expect(only()).toMatchObject({ text: "Hello", state: "done" });
});

test("a thumb on an answer that was asked for anew meanwhile is none of the new answer's", async () => {
  const one = held();
  const again = streamed({ ...chunk("Anew", "stop"), id: "chatcmpl-4" }, "[DONE]");
  answers = [streamed(chunk("Hel")), one.answer, again];
  await ask("Hi?");
  const voting = vote(first().id, 0, true);
  await askAgain(first().id, 0);
  one.release();
  await voting;
  expect(only()).toMatchObject({ id: "chatcmpl-4", text: "Anew" });
  expect(only().label).toBeUndefined();
});

test("who signs out leaves no conversation, and hears no more of it", async () => {
  answers = [({ signal }) => new Promise((_, reject) => signal!.addEventListener("abort", () => reject(new DOMException("", "AbortError"))))];
  set({ system: "Be brief." });
  const asking = ask("A secret?");
  signOut();
  await asking;
  expect(current()).toEqual({ turns: [], settings: { model: "", other: "", compare: false, system: "", temperature: "", max_tokens: "" } });
});
