"""The pieces of benchmarks/closed_loop.py: who votes and how wrongly, what is counted, and the intervals."""

from __future__ import annotations

import importlib
import json
import threading
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pyarrow as pa
import pytest

from bco_ray.config import parse_spec
from bco_ray.demo.base import WORLD

MANY = 20_000


@pytest.fixture(scope="module")
def loop() -> Iterator[Any]:
    """The benchmark's modules by their last word."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(Path(__file__).parents[1] / "benchmarks"))
        names = ("users", "report", "rounds", "alone")
        yield SimpleNamespace(**{name: importlib.import_module(f"closed_loop_{name}") for name in names})


def test_a_thumb_is_left_with_the_chance_of_its_kind_and_mood(loop: Any) -> None:
    people = loop.users.users(WORLD.train_prompts, MANY, seed=0, round_=0)
    for kind in ("problem", "curiosity"):
        asked = [user for user in people if loop.users.kind(user.prompt) == kind]
        for liked in (True, False):
            votes = [user.thumb(liked) for user in asked if user.thumb(liked) is not None]
            assert len(votes) / len(asked) == pytest.approx(loop.users.CHANCES[kind, liked], abs=0.015)
            assert votes.count(not liked) / len(votes) == pytest.approx(loop.users.NOISE, abs=0.015)


def test_ups_and_downs_come_from_other_prompts(loop: Any) -> None:
    people = loop.users.users(WORLD.train_prompts, MANY, seed=0, round_=0)
    seen = Counter((user.thumb(n % 2 == 0), loop.users.kind(user.prompt)) for n, user in enumerate(people))
    problems = {up: seen[up, "problem"] / (seen[up, "problem"] + seen[up, "curiosity"]) for up in (True, False)}
    assert problems[True] < 0.35
    assert problems[False] > 0.5


def test_every_arm_is_visited_by_the_same_people_and_every_round_by_others(loop: Any) -> None:
    first, again, later = (loop.users.users(WORLD.train_prompts, 50, seed=3, round_=n) for n in (1, 1, 2))
    assert first == again
    assert first != later


class Street(ThreadingHTTPServer):
    request_queue_size = 128  # of five, as it is, connections are lost on a busy machine


class Shop(BaseHTTPRequestHandler):
    """Answers the demo's questions too briefly, fails where the seed is a multiple of four, and writes votes down."""

    votes: ClassVar[list[str]] = []

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        if self.path == "/v1/feedback":
            Shop.votes.append(body["response_id"])
            return self._reply(201, {})
        said = {"id": f"chatcmpl-{body['seed']}", "model": "helper/1", "choices": [{"message": {"content": "No."}}]}
        return self._reply(503 if body["seed"] % 4 == 0 else 200, said)

    def _reply(self, status: int, body: dict[str, Any]) -> None:
        sent = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("content-length", str(len(sent)))
        self.end_headers()
        self.wfile.write(sent)

    def log_message(self, *_: object) -> None:
        """Silent."""


def test_failures_are_counted_and_votes_arrive_in_the_order_of_the_users(loop: Any) -> None:
    server = Street(("127.0.0.1", 0), Shop)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    people = loop.users.users(WORLD.train_prompts, 40, seed=0, round_=0)
    try:
        visits = loop.users.visit(f"http://127.0.0.1:{server.server_port}", "helper@prod", people)
    finally:
        server.shutdown()
        server.server_close()
    assert [visit.model is None for visit in visits] == [user.seed % 4 == 0 for user in people]
    assert 0 < sum(visit.model is None for visit in visits) < len(people)
    assert not any(visit.liked for visit in visits)
    assert Shop.votes == [visit.response for visit in visits if visit.thumb is not None]
    assert len(Shop.votes) > 10


def test_an_interval_over_seeds_is_students(loop: Any) -> None:
    mean, low, high = loop.report.over_seeds([1.0, 2.0, 3.0])
    assert (mean, low, high) == pytest.approx((2.0, 2 - 4.30265 / 3**0.5, 2 + 4.30265 / 3**0.5), abs=1e-4)
    assert loop.report.over_seeds([0.5]) == (0.5, None, None)


def rows(*satisfied: tuple[str, int, float]) -> list[dict[str, Any]]:
    return [
        {"arm": arm, "seed": seed, "round": 1, "satisfaction": share, "liked": round(100 * share), "users": 100}
        for arm, seed, share in satisfied
    ]


def test_the_summary_pools_answers_and_pairs_seeds(loop: Any) -> None:
    found = rows(("bco", 0, 0.8), ("bco", 1, 0.6), ("none", 0, 0.5), ("none", 1, 0.3), ("none", 2, 0.1))
    none, bco = loop.report.summary(found)
    assert (none["arm"], none["seeds"], none["mean"]) == ("none", 3, pytest.approx(0.3))
    assert bco["binomial"] == pytest.approx(loop.report.wilson(140, 200))
    (gain,) = loop.report.differences(found, "bco", "none")
    assert gain["seeds"] == 2
    assert (gain["mean"], gain["low"], gain["high"]) == pytest.approx((0.3, 0.3, 0.3))


def test_every_arm_that_trains_has_a_spec_with_a_gate_and_the_loss_it_is_named_after(loop: Any, tmp_path: Path) -> None:
    for arm in loop.rounds.ARMS.values():
        if arm.loss:
            written = loop.rounds.spec(
                arm, storage=tmp_path, base="helper@prod", feedback="feedback", seed=1, rate=1e-3
            )
            spec = parse_spec(written, where="test")
            assert arm.name.startswith(spec.objective.loss)
            assert spec.gate is not None
            assert spec.gate.evaluates


class Doubled:
    """A stage that is made once and called per block, as an actor is; it may give more than one block back."""

    def __init__(self, *, by: int) -> None:
        self._by = by

    def __call__(self, rows: pa.Table) -> Iterator[pa.Table]:
        for row in rows.to_pylist():
            yield pa.table({"n": [row["n"] * self._by]})


def test_blocks_do_what_the_stages_ask_of_ray_data(loop: Any) -> None:
    rows = loop.alone.from_items([{"n": 1}, {"n": 2}], override_num_blocks=2)
    assert [block.num_rows for block in rows.iter_batches(batch_format="pyarrow")] == [1, 1]
    (whole,) = rows.map(lambda row: {"n": row["n"] + 1}).repartition(1).iter_batches()
    assert whole.to_pylist() == [{"n": 2}, {"n": 3}]
    doubled = rows.repartition(1).map_batches(Doubled, fn_constructor_kwargs={"by": 2}, batch_size=None)
    assert list(doubled.iter_rows()) == [{"n": 2}, {"n": 4}]
    with pytest.raises(ValueError, match="too large"):
        rows.repartition(8, keys=["bucket"])
