/** Talking to the server: the key goes along, and whatever goes wrong becomes a sentence. */

import { key } from "./session.ts";
import { eventsOf, piecesOf, type ServerEvent } from "./sse.ts";

export type Json = Record<string, unknown>;

export interface Page<T> {
  data: T[];
  has_more: boolean;
  last_id: string | null;
}

/** What the server said no with, or that it said nothing. `status` 0: no answer came. `retryAfter`: seconds, if it says. */
export class ApiError extends Error {
  constructor(
    readonly status: number,
    message: string,
    readonly code: string | null = null,
    readonly param: string | null = null,
    readonly retryAfter: number | null = null,
  ) {
    super(message);
  }
}

/** Called whenever a key is missing or refused. */
let refused: (message: string) => void = () => {};

export function onRefusal(tell: (message: string) => void): void {
  refused = tell;
}

export async function get<T>(path: string, signal?: AbortSignal): Promise<T> {
  return (await send("GET", path, { signal })).json() as Promise<T>;
}

export async function post<T>(path: string, body: unknown, headers: Record<string, string> = {}): Promise<T> {
  const json = { "content-type": "application/json", ...headers };
  return (await send("POST", path, { body: JSON.stringify(body), headers: json })).json() as Promise<T>;
}

/** A file as `multipart/form-data`. */
export async function upload<T>(path: string, file: File, fields: Record<string, string>): Promise<T> {
  const form = new FormData();
  for (const [name, value] of Object.entries(fields)) form.append(name, value);
  form.append("file", file);
  return (await send("POST", path, { body: form })).json() as Promise<T>;
}

/** The bytes of a log as they come, each piece with the offset that it begins at. */
export async function* logPieces(path: string, signal: AbortSignal): AsyncGenerator<{ at: number; piece: Uint8Array }> {
  const reply = await send("GET", path, { signal });
  let at = Number(reply.headers.get("x-log-offset") ?? 0);
  for await (const piece of piecesOf(reply.body)) {
    yield { at, piece };
    at += piece.length;
  }
}

/** Server-sent events of a POST; an error in the middle is thrown like one at the beginning. */
export async function* stream<T>(path: string, body: unknown, signal: AbortSignal): AsyncGenerator<T> {
  const headers = { "content-type": "application/json" };
  const reply = await send("POST", path, { body: JSON.stringify(body), headers, signal });
  if (!reply.body) return;
  for await (const event of eventsOf(reply.body)) {
    if (event === "[DONE]") return;
    const value = parsed(event);
    if (isEnvelope(value)) throw new ApiError(200, value.error.message, value.error.code, value.error.param);
    yield value as T;
  }
}

const LONGEST_PAGE = 100;

/** The first `most` objects of a list, in as many pages as they take; and whether there are more. */
export async function firstOf<T>(most: number, page: (query: { limit: number; after?: string }) => Promise<Page<T>>): Promise<Page<T>> {
  const found: T[] = [];
  for (let after: string | null = null; ; ) {
    const limit = Math.min(LONGEST_PAGE, most - found.length);
    const next: Page<T> = await page({ limit, ...(after !== null && { after }) });
    found.push(...next.data);
    if (!next.has_more || !next.data.length || found.length >= most) return { ...next, data: found };
    after = next.last_id;
  }
}

export function withQuery(path: string, query: Record<string, string | number>): string {
  const said = new URLSearchParams(Object.entries(query).map(([name, value]) => [name, String(value)])).toString();
  return said ? `${path}${path.includes("?") ? "&" : "?"}${said}` : path;
}

/** In words, whatever was thrown. */
export function inWords(error: unknown): string {
  return error instanceof Error ? error.message : String(error);
}

export function wasAborted(error: unknown): boolean {
  return error instanceof DOMException && error.name === "AbortError";
}

async function send(method: string, path: string, options: RequestInit): Promise<Response> {
  const headers = new Headers(options.headers);
  const said = key();
  if (said) headers.set("authorization", `Bearer ${said}`);
  let reply: Response;
  try {
    reply = await fetch(path, { ...options, method, headers, cache: "no-store", credentials: "omit" });
  } catch (error) {
    if (wasAborted(error)) throw error;
    throw new ApiError(0, "The server does not answer. It may be starting again, or the network is away.");
  }
  if (reply.ok) return reply;
  const error = refusal(reply.status, await reply.text(), reply.headers.get("x-request-id"), reply.headers.get("retry-after"));
  if (reply.status === 401) refused(error.message);
  throw error;
}

/** What a reply that is an error says; a proxy's is no JSON. */
export function refusal(status: number, text: string, requestId: string | null, retryAfter: string | null = null): ApiError {
  const value = parsed(text);
  const seconds = secondsOf(retryAfter);
  if (isEnvelope(value)) {
    const { message, code, param } = value.error;
    return new ApiError(status, status < 500 || !requestId ? message : `${message} (request ${requestId})`, code, param, seconds);
  }
  const said = text.trim().slice(0, 200);
  return new ApiError(status, `The server answered ${status}${said ? `: ${said}` : ", and nothing else."}`, null, null, seconds);
}

/** `Retry-After`, which is seconds or a date. */
export function secondsOf(retryAfter: string | null, now = Date.now()): number | null {
  if (!retryAfter?.trim()) return null;
  const seconds = /^\s*\d+\s*$/.test(retryAfter) ? Number(retryAfter) : (Date.parse(retryAfter) - now) / 1000;
  return Number.isFinite(seconds) ? Math.max(0, seconds) : null;
}

type Envelope = { error: { message: string; code: string | null; param: string | null } };

function isEnvelope(value: unknown): value is Envelope {
  const error = (value as Envelope | null)?.error;
  return typeof error === "object" && error !== null && typeof error.message === "string";
}

function parsed(text: ServerEvent): unknown {
  try {
    return JSON.parse(text);
  } catch {
    return null;
  }
}
