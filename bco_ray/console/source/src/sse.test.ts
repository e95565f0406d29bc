import { expect, test } from "vitest";
import { dataOf, eventsOf, piecesOf } from "./sse.ts";

async function events(...pieces: (string | Uint8Array)[]): Promise<string[]> {
  const body = new ReadableStream<Uint8Array>({
    start(controller) {
      for (const piece of pieces) controller.enqueue(typeof piece === "string" ? new TextEncoder().encode(piece) : piece);
      controller.close();
    },
  });
  const found: string[] = [];
  for await (const event of eventsOf(body)) found.push(event);
  return found;
}

test("events come whole, wherever the network cuts them", async () => {
  const text = 'data: {"a":1}\n\ndata: {"b":"é"}\n\ndata: [DONE]\n\n';
  const said = ['{"a":1}', '{"b":"é"}', "[DONE]"];
  expect(await events(text)).toEqual(said);
  expect(await events(...new TextEncoder().encode(text).reduce<Uint8Array[]>((all, byte) => [...all, Uint8Array.of(byte)], []))).toEqual(said);
});

test("what ends without a blank line is an event, too; comments are none", async () => {
  expect(await events(": hello\n\ndata: x")).toEqual(["x"]);
  expect(dataOf("data: a\ndata: b")).toBe("a\nb");
  expect(dataOf(": ping")).toBeNull();
});

test("who stops reading ends the request", async () => {
  const cancelled = await new Promise((tell) => {
    const body = new ReadableStream<Uint8Array>({ pull: (controller) => controller.enqueue(Uint8Array.of(1)), cancel: () => tell(true) });
    void (async () => {
      for await (const piece of piecesOf(body)) if (piece.length) break;
    })();
  });
  expect(cancelled).toBe(true);
  for await (const piece of piecesOf(null)) expect.unreachable(String(piece));
});
