import { expect, test } from "vitest";
import { firstOf, inWords, refusal, secondsOf, withQuery } from "./api.ts";

test("an envelope is told by its message, and a server's mistake by its request", () => {
  const said = JSON.stringify({ error: { message: "No such model.", code: "model_not_found", param: "model" } });
  expect(refusal(404, said, "req-1")).toMatchObject({ message: "No such model.", code: "model_not_found", param: "model" });
  expect(refusal(500, said, "req-1").message).toBe("No such model. (request req-1)");
});

test("a proxy's page is told, too", () => {
  expect(refusal(502, "Bad Gateway\n", null).message).toBe("The server answered 502: Bad Gateway");
  expect(refusal(502, "", null).message).toBe("The server answered 502, and nothing else.");
});

test("queries are escaped", () => {
  expect(withQuery("/v1/x", {})).toBe("/v1/x");
  expect(withQuery("/v1/x?a=1", { after: "b&c" })).toBe("/v1/x?a=1&after=b%26c");
  expect(inWords("as it is")).toBe("as it is");
});

test("how long to wait is seconds or a date", () => {
  const now = Date.parse("2026-01-01T00:00:00Z");
  expect([secondsOf(null), secondsOf(""), secondsOf("37", now), secondsOf("soon", now)]).toEqual([null, null, 37, null]);
  expect(secondsOf("Thu, 01 Jan 2026 00:01:30 GMT", now)).toBe(90);
  expect(secondsOf("Wed, 31 Dec 2025 00:00:00 GMT", now)).toBe(0);
  expect(refusal(429, "{}", null, "5").retryAfter).toBe(5);
});

test("the first of a list are fetched in pages that meet", async () => {
  const everything = Array.from({ length: 250 }, (_, n) => ({ id: `j${n}` }));
  const asked: { limit: number; after?: string }[] = [];
  const page = async (query: { limit: number; after?: string }) => {
    asked.push(query);
    const from = query.after ? everything.findIndex((one) => one.id === query.after) + 1 : 0;
    const data = everything.slice(from, from + query.limit);
    return { data, has_more: from + data.length < everything.length, last_id: data.at(-1)?.id ?? null };
  };
  const found = await firstOf(120, page);
  expect([found.data.length, found.has_more]).toEqual([120, true]);
  expect(asked).toEqual([{ limit: 100 }, { limit: 20, after: "j99" }]);
  const all = await firstOf(1000, page);
  expect([all.data.length, all.has_more]).toEqual([250, false]);
  everything.unshift(...["new1", "new2"].map((id) => ({ id })));
  expect((await firstOf(120, page)).data.map((one) => one.id)).toEqual(everything.slice(0, 120).map((one) => one.id));
});
