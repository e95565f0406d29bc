import { expect, test } from "vitest";
import { anew, ballots, canBeJudged, canBeRetried, chosenOf, ended, grown, messagesOf, namesOf, newTurn, type Answer, type Chunk, type Turn } from "./turns.ts";

const chunk = (content: string | null, finish: string | null = null, token?: string): Chunk => ({
  id: "chatcmpl-1",
  model: "bot/1",
  feedback_token: token,
  choices: [{ delta: { content }, finish_reason: finish }],
});

function answered(asked: string, text: string, id: string): Answer {
  return { asked, text, id, model: asked, token: `token of ${id}`, state: "done" };
}

test("an answer grows by its chunks; the token comes with the last", () => {
  const start: Answer = { asked: "bot", text: "", state: "waiting" };
  const done = [chunk("Hel"), chunk("lo"), chunk(null, "stop", "t")].reduce(grown, start);
  expect(done).toMatchObject({ text: "Hello", state: "done", token: "t", model: "bot/1", finish: "stop" });
  expect(grown(done, { ...chunk(null), choices: [] }).text).toBe("Hello");
});

test("an answer without an end is broken, and can be asked for anew", () => {
  const start: Answer = { asked: "bot", text: "", state: "waiting" };
  const half = ended(grown(start, chunk("Hel")));
  expect(half).toMatchObject({ text: "Hel", state: "broken" });
  expect(ended(start)).toMatchObject({ state: "failed", error: "The server sent no answer." });
  expect(grown(grown(start, chunk("Hel")), chunk(null, "abort")).state).toBe("broken");
  const whole = grown(start, chunk("Hello", "stop"));
  expect(ended(whole)).toBe(whole);
  expect(grown(whole, { ...chunk(null), choices: [] }).state).toBe("done");
  expect(["broken", "failed", "stopped", "done", "streaming"].map((state) => canBeRetried({ ...start, state } as Answer))).toEqual([
    true, true, true, false, false,
  ]);
  expect(anew(half)).toEqual(start);
});

test("a conversation goes on from the chosen answers, and leaves out what failed", () => {
  const pair: Turn = { id: 1, prompt: "1?", answers: [answered("a", "one", "x"), answered("b", "eins", "y")], blind: false, chosen: 1 };
  const failed: Turn = { id: 1, prompt: "2?", answers: [{ asked: "a", text: "", state: "failed" }], blind: false, chosen: 0 };
  const broken: Turn = { ...failed, answers: [{ asked: "a", text: "half an ans", id: "z", state: "broken" }] };
  expect(messagesOf(" ", [pair, failed, broken], "3?")).toEqual([
    { role: "user", content: "1?" },
    { role: "assistant", content: "eins" },
    { role: "user", content: "3?" },
  ]);
  expect(messagesOf("Be brief.", [], "?")[0]).toEqual({ role: "system", content: "Be brief." });
});

test("two answers are shown in an order of chance, and judged once both are there", () => {
  expect(newTurn(1, "?", ["a", "b"], true).answers.map((one) => one.asked)).toEqual(["b", "a"]);
  expect(newTurn(1, "?", ["a"], false).blind).toBe(false);
  const turn = { ...newTurn(1, "?", ["a", "b"], false), answers: [answered("a", "one", "x"), answered("b", "eins", "y")] };
  expect(canBeJudged(turn)).toBe(true);
  expect(canBeJudged({ ...turn, answers: [turn.answers[0]!, { asked: "b", text: "", state: "failed" }] })).toBe(false);
  const votes = ballots(turn, "second", "me");
  expect(votes.map((vote) => [vote.response_id, vote.label, vote.feedback_token])).toEqual([
    ["x", false, "token of x"],
    ["y", true, "token of y"],
  ]);
  expect(votes[0]!.metadata).toEqual({ compared_with: "y", compared_with_model: "b", verdict: "second" });
});

test("bare names can be asked for where they mean something", () => {
  expect(namesOf(["bot/3", "bot@prod"])).toEqual(["bot", "bot/3", "bot@prod"]);
});

test("to compare with another version is proposed", () => {
  const served = [{ id: "bot/1", root: "bot/1" }, { id: "bot/2", root: "bot/2" }, { id: "bot@prod", root: "bot/1" }];
  const names = namesOf(served.map((one) => one.id));
  expect(chosenOf(names, served, { model: "", other: "gone/1" })).toEqual({ model: "bot", other: "bot/2" });
  expect(chosenOf(names, served, { model: "bot/2", other: "bot" })).toEqual({ model: "bot/2", other: "bot" });
  expect(chosenOf(["a/1"], [{ id: "a/1", root: "a/1" }], { model: "", other: "" })).toEqual({ model: "a/1", other: "a/1" });
});
