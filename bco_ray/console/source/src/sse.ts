/** Server-sent events, as the server sends them: one `data:` line each, a blank line between. */

export type ServerEvent = string;

export async function* eventsOf(body: ReadableStream<Uint8Array>): AsyncGenerator<ServerEvent> {
  const decoder = new TextDecoder();
  let rest = "";
  for await (const piece of piecesOf(body)) {
    const blocks = (rest + decoder.decode(piece, { stream: true })).split(/\r?\n\r?\n/);
    rest = blocks.pop() ?? "";
    yield* blocks.map(dataOf).filter((data) => data !== null);
  }
  yield* [dataOf(rest + decoder.decode())].filter((data) => data !== null);
}

/** A body in the pieces in which it comes; who stops reading ends the request. (Safari cannot iterate a body by itself.) */
export async function* piecesOf(body: ReadableStream<Uint8Array> | null): AsyncGenerator<Uint8Array> {
  const reader = body?.getReader();
  try {
    while (reader) {
      const { done, value } = await reader.read();
      if (done) return;
      yield value;
    }
  } finally {
    await reader?.cancel().catch(() => {});
  }
}

/** Of one event; null for a comment or an event without data. */
export function dataOf(block: string): ServerEvent | null {
  const lines = block.split(/\r?\n/).filter((line) => line.startsWith("data:"));
  return lines.length ? lines.map((line) => line.slice(5).replace(/^ /, "")).join("\n") : null;
}
