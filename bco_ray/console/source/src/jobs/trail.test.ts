import { afterEach, beforeEach, expect, test, vi } from "vitest";
import { ApiError, type Page } from "../api.ts";
import { Follower, type Followed, type Look } from "./following.ts";
import { eventsLook, logLook, type Log } from "./trail.ts";
import type { JobEvent } from "./types.ts";

beforeEach(() => void vi.useFakeTimers());
afterEach(() => void vi.useRealTimers());

const settle = () => vi.advanceTimersByTimeAsync(0);
const query = (path: string) => Object.fromEntries(new URLSearchParams(path.split("?")[1]));

function followed<T>(known: T, look: Look<T>) {
  const told: Followed<T>[] = [];
  return { follower: new Follower<T>({ known, looked: false, error: null }, look, (state) => void told.push(state)), told };
}

function server(ids: string[]) {
  const asked: Record<string, string>[] = [];
  const fetch = async (path: string): Promise<Page<JobEvent>> => {
    const { before, after, limit } = query(path) as { before?: string; after?: string; limit: string };
    asked.push({ ...(before && { before }), ...(after && { after }) });
    const range = ids.slice(after ? ids.indexOf(after) + 1 : 0, before ? ids.indexOf(before) : undefined);
    const data = range.slice(0, Number(limit)).map((id) => ({ id }) as JobEvent);
    return { data, has_more: range.length > data.length, last_id: data.at(-1)?.id ?? null };
  };
  return { asked, fetch };
}

test("of the events only new ones are fetched", async () => {
  const ids = Array.from({ length: 250 }, (_, n) => `e${249 - n}`);
  const { asked, fetch } = server(ids);
  const { follower, told } = followed<JobEvent[]>([], eventsLook("/events", fetch));
  follower.ask();
  await settle();
  expect(told.at(-1)).toMatchObject({ looked: true, error: null });
  expect(told.at(-1)!.known.map((event) => event.id)).toEqual(ids);
  expect(asked).toEqual([{}, { after: "e150" }, { after: "e50" }]);
  ids.unshift("e251", "e250");
  follower.ask();
  await settle();
  expect(asked.slice(3)).toEqual([{ before: "e249" }]);
  expect(told.at(-1)!.known.slice(0, 3).map((event) => event.id)).toEqual(["e251", "e250", "e249"]);
  follower.ask();
  await settle();
  expect(asked.slice(4)).toEqual([{ before: "e251" }]);
  expect(told.at(-1)!.known).toHaveLength(252);
});

const start = (): Log => ({ offset: null, text: "", decoder: new TextDecoder() });
const bytes = (text: string) => new TextEncoder().encode(text);

test("a log is read on from where it was, also after it broke off in the middle, or of a letter", async () => {
  const log = bytes("première\nzweite\n");
  const asked: number[] = [];
  let breaks = 6; // within the è
  const pieces = async function* (path: string) {
    const at = Math.max(0, Number(query(path).offset));
    asked.push(Number(query(path).offset));
    yield { at, piece: log.slice(at, breaks) };
    if (breaks < log.length) throw new ApiError(0, "The server does not answer.");
  };
  const { follower, told } = followed(start(), logLook("/logs", pieces));
  follower.ask();
  await settle();
  expect(told.at(-1)).toMatchObject({ looked: false, error: "The server does not answer.", known: { offset: 6, text: "premi" } });
  breaks = log.length;
  await vi.advanceTimersByTimeAsync(4000);
  expect(told.at(-1)).toMatchObject({ looked: true, error: null, known: { offset: log.length, text: "première\nzweite\n" } });
  expect(asked).toEqual([-200_000, 6]);
});

test("of a long log the end is read, from a line's beginning on", async () => {
  const pieces = async function* () {
    yield { at: 5000, piece: bytes("f a line\nnext\n") };
    yield { at: 5014, piece: bytes("last\n") };
  };
  const { follower, told } = followed(start(), logLook("/logs", pieces));
  follower.ask();
  await settle();
  expect(told.at(-1)!.known).toMatchObject({ offset: 5019, text: "next\nlast\n" });
});

test("one look at a time; who asks meanwhile gets one more", async () => {
  const ends: (() => void)[] = [];
  const look = vi.fn(() => new Promise<void>((end) => ends.push(end)));
  const { follower } = followed(0, look);
  follower.ask();
  follower.ask();
  follower.ask();
  expect(look).toHaveBeenCalledTimes(1);
  ends[0]!();
  await settle();
  expect(look).toHaveBeenCalledTimes(2);
  ends[1]!();
  await settle();
  expect(look).toHaveBeenCalledTimes(2);
});

test("after an error it waits as long as the server says, and for what is not there it does not ask again", async () => {
  const errors = [new ApiError(429, "Too many.", null, null, 30), new ApiError(404, "No such job.")];
  const look = vi.fn(async () => {
    throw errors.shift();
  });
  const { follower, told } = followed(0, look);
  follower.ask();
  await settle();
  follower.ask();
  await vi.advanceTimersByTimeAsync(29_999);
  expect(look).toHaveBeenCalledTimes(1);
  expect(told.at(-1)!.error).toBe("Too many.");
  await vi.advanceTimersByTimeAsync(1);
  expect(look).toHaveBeenCalledTimes(2);
  follower.ask();
  await vi.advanceTimersByTimeAsync(600_000);
  expect(look).toHaveBeenCalledTimes(2);
});

test("who has left is told nothing", async () => {
  let end = () => {};
  const { follower, told } = followed<number>(0, async (_, tell) => {
    await new Promise<void>((done) => (end = done));
    tell(1);
  });
  follower.ask();
  follower.leave();
  end();
  await settle();
  expect(told).toEqual([]);
});
