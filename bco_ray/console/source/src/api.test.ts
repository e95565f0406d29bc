import { expect, test } from "vitest";
import { inWords, refusal, withQuery } from "./api.ts";

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
