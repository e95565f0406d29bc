"""Judges: both orders, rules, an endpoint that errs, and win rates that are not surer than they can be."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar

import pytest

from bco_ray.config.evaluation import JUDGE_PROMPT
from bco_ray.errors import ServingError, SpecError
from bco_ray.evaluation import endpoint
from bco_ray.evaluation.endpoint import EndpointJudge, filled, verdict_in
from bco_ray.evaluation.judging import Outcome, Pair, Verdict, judge_pairs, rule, wilson, win_rate


class Says:
    """A judge whose verdict is a function of the two answers."""

    name = "test"

    def __init__(self, verdict: Callable[[str, str], Verdict | None]) -> None:
        self._verdict = verdict

    def compare(self, prompt: str, a: str, b: str) -> Verdict | None:
        return self._verdict(a, b)


def outcome(judge: Any, ours: str = "yes", theirs: str = "no") -> Outcome:
    found = judge_pairs(judge, [Pair("?", ours, theirs)], concurrency=1, progress=lambda *_: None)
    return found[0]


def test_both_orders_must_agree() -> None:
    assert outcome(Says(lambda a, b: "a" if a == "yes" else "b")) == "win"
    assert outcome(Says(lambda a, b: "a" if a == "no" else "b")) == "loss"
    assert outcome(Says(lambda a, b: "tie")) == "tie"
    assert outcome(Says(lambda a, b: "a")) == "swayed"
    assert outcome(Says(lambda a, b: "a" if a == "yes" else "tie")) == "swayed"
    assert outcome(Says(lambda a, b: None)) == "undecided"
    assert outcome(Says(lambda a, b: "a" if a == "yes" else None)) == "undecided"
    assert outcome(Says(lambda a, b: None), "same", "same") == "tie"


def test_outcomes_come_in_the_order_of_the_pairs() -> None:
    pairs = [Pair("?", "x" * n, "x" * (10 - n)) for n in range(11)]
    told: list[float] = []
    found = judge_pairs(rule("longer", None), pairs, concurrency=4, progress=lambda done, *_: told.append(done))
    assert found == ["loss"] * 5 + ["tie"] + ["win"] * 5
    assert told == list(range(1, 12))


@pytest.mark.parametrize(
    ("kind", "pattern", "better", "worse"),
    [("contains", "Paris", "It is Paris.", "paris"), ("regex", r"^\w+!", "Hello! Yes.", "Yes. Hello!"),
     ("shorter", None, "no", "yes"), ("longer", None, "yes", "no")],
)  # fmt: skip
def test_rules(kind: Any, pattern: str | None, better: str, worse: str) -> None:
    judge = rule(kind, pattern)
    assert (outcome(judge, better, worse), outcome(judge, worse, better)) == ("win", "loss")
    assert judge.name.startswith("rule: ")


def test_a_tie_is_half_a_win_and_what_is_undecided_counts_nowhere() -> None:
    found = win_rate(["win"] * 5 + ["tie", "swayed"] + ["loss"] * 3 + ["undecided"] * 7, "j", 0.95)
    assert (found.wins, found.ties, found.losses, found.swayed, found.undecided) == (5, 2, 3, 1, 7)
    assert found.rate.value == pytest.approx(0.6)
    assert (found.rate.low, found.rate.high) == pytest.approx(wilson(6, 10, 0.95))
    assert win_rate(["undecided"], "j", 0.95).rate.value is None


def test_wilson_is_the_textbooks_and_never_sure() -> None:
    assert wilson(5, 50, 0.95) == pytest.approx((0.0434756, 0.2136022), abs=1e-6)
    low, high = wilson(10, 10, 0.95)
    assert low == pytest.approx(0.7224672, abs=1e-6)
    assert high == 1.0
    assert wilson(0, 0, 0.95) == (0.0, 1.0)


def test_marks_and_templates() -> None:
    assert verdict_in("A is short. [[B]] at first, but [[A]]") == "a"
    assert verdict_in("[[C]]") == "tie"
    assert verdict_in("A") is None
    assert verdict_in(None) is None
    text = filled("{prompt}|{a}|{b}", prompt="say {a}", a="{b}", b="{prompt}")
    assert text == "say {a}|{b}|{prompt}"
    assert {"{prompt}", "{a}", "{b}"} <= set(JUDGE_PROMPT.split())


class Server(BaseHTTPRequestHandler):
    """Prefers the answer that says good; what is in `replies` comes first."""

    seen: ClassVar[list[dict[str, Any]]] = []
    replies: ClassVar[list[tuple[int, dict[str, Any]]]] = []

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        self.seen.append({**body, "key": self.headers["authorization"], "path": self.path})
        text = body["messages"][0]["content"]
        mark = "[[A]]" if text.index("good") < text.index("bad") else "[[B]]"
        choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": f"Hm. {mark}"}}
        status, reply = self.replies.pop(0) if self.replies else (200, {"id": "1", "choices": [choice]})
        content = json.dumps(reply).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def server() -> Iterator[str]:
    Server.seen, Server.replies = [], []
    http = ThreadingHTTPServer(("127.0.0.1", 0), Server)
    thread = threading.Thread(target=http.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{http.server_port}/v1"
    http.shutdown()
    http.server_close()
    thread.join(10)


def judge_at(url: str, **more: Any) -> EndpointJudge:
    settings = {"api_key_env": None, "prompt": "{prompt} {a} {b}", "parameters": {"temperature": 0, "top_k": 1}}
    return EndpointJudge(url, "judge-1", timeout_seconds=10, **{**settings, **more})


def test_an_endpoint_is_asked_in_both_orders_with_its_parameters(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JUDGE_KEY", "sk-secret")
    judge = judge_at(server, api_key_env="JUDGE_KEY")
    assert outcome(judge, "good", "bad") == "win"
    assert outcome(judge, "bad", "good") == "loss"
    assert [body["messages"][0]["content"] for body in Server.seen[:2]] == ["? good bad", "? bad good"]
    asked = Server.seen[0]
    assert (asked["model"], asked["temperature"], asked["top_k"]) == ("judge-1", 0, 1)
    assert (asked["key"], asked["path"]) == ("Bearer sk-secret", "/v1/chat/completions")
    assert "secret" not in judge.name


def test_a_server_that_stumbles_is_asked_again_and_one_that_falls_is_undecided(
    server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(endpoint, "RETRIES", 1)
    Server.replies = [(503, {"error": {"message": "busy"}})]
    assert outcome(judge_at(server), "good", "bad") == "win"
    Server.replies = [(503, {"error": {"message": "busy"}})] * 2
    assert outcome(judge_at(server), "good", "bad") == "undecided"
    Server.replies = [(200, {"id": "1", "choices": []})]
    assert outcome(judge_at(server), "good", "bad") == "undecided"


@pytest.mark.parametrize("status", [400, 401, 403, 404, 422])
def test_what_would_be_refused_again_ends_it(server: str, status: int) -> None:
    Server.replies = [(status, {"error": {"message": "no such model judge-1"}})]
    with pytest.raises(ServingError, match="judge: judge-1 at http.* refuses: .*no such model"):
        outcome(judge_at(server), "good", "bad")


def test_a_key_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("JUDGE_KEY", raising=False)
    with pytest.raises(SpecError, match="judge.api_key_env: the environment variable JUDGE_KEY is not set"):
        judge_at("http://127.0.0.1:9/v1", api_key_env="JUDGE_KEY")
