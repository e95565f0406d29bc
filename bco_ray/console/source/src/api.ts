/** Talking to the server: the key goes along, and whatever goes wrong becomes a sentence. */

import { key } from "./session.ts";
import { eventsOf, type ServerEvent } from "./sse.ts";

export type Json = Record<string, unknown>;

export interface Page<T> {
  data: T[];
  has_more: boolean;
  last_id: string | null;
}

/** What the server said no with, or that it said nothing. `status` 0: no answer came. */
export class ApiError extends Error {
  constructor(
    readonly status: number,
    message: string,
    readonly code: string | null = null,
    readonly param: string | null = null,
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

/** The bytes of a text from an offset on. */
export async function bytes(path: string, signal?: AbortSignal): Promise<Uint8Array> {
  return new Uint8Array(await (await send("GET", path, { signal })).arrayBuffer());
}

/** Server-sent events of a POST; an error in the middle is thrown like one at the beginning. */
export async function* stream<T>(path: string, body: unknown, signal: AbortSignal): AsyncGenerator<T> {
  const headers = { "content-type": "application/json" };
  const reply = await send("POST", path, { body: JSON.stringify(body), headers, signal });
  if (!reply.body) return;
  for await (const event of eventsOf(reply.body)) {
    if (event === "[DONE]") return;
    const value = parsed(event);
    if (isEnvelope(value)) throw fromEnvelope(200, value);
    yield value as T;
  }
}

/** Every page of a list, up to `most` of its objects. */
export async function all<T>(path: string, most: number, signal?: AbortSignal): Promise<T[]> {
  const found: T[] = [];
  for (let after: string | null = null; ; ) {
    const page: Page<T> = await get(withQuery(path, after === null ? {} : { after }), signal);
    found.push(...page.data);
    if (!page.has_more || found.length >= most) return found;
    after = page.last_id;
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
  const error = refusal(reply.status, await reply.text(), reply.headers.get("x-request-id"));
  if (reply.status === 401) refused(error.message);
  throw error;
}

/** What a reply that is an error says; a proxy's is no JSON. */
export function refusal(status: number, text: string, requestId: string | null): ApiError {
  const value = parsed(text);
  if (isEnvelope(value)) {
    const error = fromEnvelope(status, value);
    return status < 500 || !requestId ? error : new ApiError(status, `${error.message} (request ${requestId})`, error.code);
  }
  const said = text.trim().slice(0, 200);
  return new ApiError(status, `The server answered ${status}${said ? `: ${said}` : ", and nothing else."}`);
}

type Envelope = { error: { message: string; code: string | null; param: string | null } };

function isEnvelope(value: unknown): value is Envelope {
  const error = (value as Envelope | null)?.error;
  return typeof error === "object" && error !== null && typeof error.message === "string";
}

function fromEnvelope(status: number, { error }: Envelope): ApiError {
  return new ApiError(status, error.message, error.code, error.param);
}

function parsed(text: ServerEvent): unknown {
  try {
    return JSON.parse(text);
  } catch {
    return null;
  }
}
