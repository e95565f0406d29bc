import { beforeEach, expect, test, vi } from "vitest";
import { signOut } from "../session.ts";
import { ask, askAgain, current, judge, set, startAnew, stop, vote } from "./store.ts";

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
const only = () => current().turns[0]!.answers[0]!;

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
  await askAgain(0, 0);
  expect(only()).toMatchObject({ text: "Hello", state: "done" });
  expect(sent.map((one) => one.body.messages)).toEqual(Array(2).fill([{ role: "user", content: "Hi?" }]));
  await askAgain(0, 0);
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
  await expect(vote(0, 0, true)).rejects.toThrow("The server does not answer");
  expect(only().label).toBeUndefined();
  await vote(0, 0, true);
  expect(only().label).toBe(true);
  await vote(0, 0, true, "well said");
  const [first, second, third] = sent.slice(1).map((one) => one.key);
  expect(first).toBe(second);
  expect(third).not.toBe(second);
});

test("of a comparison one vote of which got no answer neither is cast twice", async () => {
  set({ compare: true });
  const other = streamed({ ...chunk("Hallo", "stop"), id: "chatcmpl-2" }, "[DONE]");
  answers = [whole, other, stored, away, stored, stored];
  await ask("Hi?");
  await expect(judge(0, "first")).rejects.toThrow("The server does not answer");
  expect(current().turns[0]!.blind).toBe(true);
  await judge(0, "first");
  expect(current().turns[0]).toMatchObject({ blind: false, answers: [{ label: true }, { label: false }] });
  const keys = sent.slice(2).map((one) => one.key);
  expect(keys.slice(0, 2)).toEqual(keys.slice(2));
});

test("who signs out leaves no conversation, and hears no more of it", async () => {
  answers = [({ signal }) => new Promise((_, reject) => signal!.addEventListener("abort", () => reject(new DOMException("", "AbortError"))))];
  set({ system: "Be brief." });
  const asking = ask("A secret?");
  signOut();
  await asking;
  expect(current()).toEqual({ turns: [], settings: { model: "", other: "", compare: false, system: "", temperature: "", max_tokens: "" } });
});
