"""A round of `closed_loop.py`: people visit, and their thumbs become a version that is promoted if its gate lets it."""

from __future__ import annotations

import shutil
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from closed_loop_alone import run_alone
from closed_loop_report import Row
from closed_loop_users import AT_ONCE, KINDS, Passers, Visit, kind, users, visit

NAME = "helper"
PORT = 8171
GATE = {"auc": {"min": 0.5, "bound": "value"}, "kl": {"max": 10, "bound": "value"}}
"""Held-out votes are told apart, and the answers are not far (nats) from the reference's. By value: a round has some
tens of held-out votes, whose cautious bound would let hardly anything through."""


@dataclass(frozen=True)
class Arm:
    """How a round trains; no loss: never. KTO as it was published weighs no prompts.

    `reference`: the first version for all rounds (`kept`), or what each round starts from (None). `feedback`: the votes
    that the live version has not learned from (`feedback:`), or all so far.
    """

    name: str
    loss: str | None
    matching: str = "off"
    reference: str | None = "kept"
    feedback: str = "feedback:"


ARMS = {
    arm.name: arm
    for arm in (
        Arm("none", None),
        Arm("bco", "bco", "auto"),
        Arm("kto", "kto"),
        Arm("bco, not matched", "bco"),
        Arm("bco, moved reference", "bco", "auto", None),
        Arm("bco, all votes", "bco", "auto", feedback="feedback"),
    )
}


def spec(arm: Arm, *, storage: Path, base: str, feedback: str, seed: int, rate: float) -> dict[str, Any]:
    """The round's job, as a user would write it."""
    return {
        "name": NAME,
        "model": {"base": base, "reference": arm.reference},
        "data": {"feedback": feedback, "validation": 0.2},
        "scoring": {"matching": arm.matching, "num_workers": 1},
        "objective": {"loss": arm.loss},
        "training": {
            "learning_rate": rate, "num_train_epochs": 4, "rows_per_step": 32, "max_length": 256, "num_workers": 1,
            "max_tokens_per_micro_batch": 4096, "deepspeed": {"zero_stage": 0}, "seed": seed,
        },
        "evaluation": {"samples": 0},
        "gate": GATE,
        "output": {"storage": str(storage)},
    }  # fmt: skip


def rounds(
    arm: Arm, known: Sequence[Row], *, seed: int, rate: float, count: int, people: int, out: Path, alone: bool
) -> Iterator[Row]:
    """Users visit `count` + 1 times; between two visits a round is trained. What is `known` is gone on from.

    A row comes when people have visited, and once more when a version has been trained on it.
    """
    from bco_ray.pipeline.served import serve_args
    from bco_ray.serving.server import start_server

    storage, rows = place_of(arm, seed, out, known)
    registry = first_version(storage, out, seed)
    args = serve_args(f"{NAME}@prod", storage).model_copy(update={"max_batch": AT_ONCE, "stream_seconds": 1.0})
    server = start_server(args, port=PORT)
    try:
        for number in range(count + 1):
            if number == len(rows):
                with visiting(storage):
                    row = visited(server.url, registry, seed, number, people)
                    rows.append({"arm": arm.name, "seed": seed, "round": number, **row})
                    yield rows[number]
            if arm.loss and number < count and "training" not in rows[number]:
                training = train(arm, registry, storage, server.url, seed=seed, rate=rate, alone=alone)
                rows[number] = {**rows[number], "training": training}
                yield rows[number]
    finally:
        server.stop()


VISITING = "visiting"


def place_of(arm: Arm, seed: int, out: Path, known: Sequence[Row]) -> tuple[Path, list[Row]]:
    """The arm's storage and its rounds so far. One that broke off during a visit begins anew: votes would double."""
    storage = out / f"seed-{seed}-{arm.name.replace(', ', '-').replace(' ', '-')}"
    if not known or (storage / VISITING).exists() or not storage.is_dir():
        shutil.rmtree(storage, ignore_errors=True)
        storage.mkdir(parents=True)
        return storage, []
    return storage, sorted(known, key=lambda row: int(row["round"]))


@contextmanager
def visiting(storage: Path) -> Iterator[None]:
    """Leaves a mark if it does not come to its end."""
    (storage / VISITING).touch()
    yield
    (storage / VISITING).unlink()


def first_version(storage: Path, out: Path, seed: int) -> Any:
    """The registry, with the base model as version 1 behind `prod` if nothing is there."""
    from bco_ray.storage.registry import Registry

    registry = Registry(storage)
    if not registry.versions(NAME):
        registry.promote(NAME, registry.register(NAME, base_model(out, seed), {}).version)
    return registry


def visited(url: str, registry: Any, seed: int, number: int, count: int) -> Row:
    """What the people of a round found, and their votes."""
    from bco_ray.demo.base import WORLD
    from bco_ray.evaluation.judging import wilson

    began = time.monotonic()
    visits = visit(url, f"{NAME}@prod", users(WORLD.train_prompts, count, seed=seed, round_=number))
    answered = [v for v in visits if v.model]
    liked = sum(v.liked for v in answered)
    votes = {
        f"{what}, {'up' if up else 'down'}": sum(v.thumb is up and kind(v.user.prompt) == what for v in answered)
        for what in KINDS
        for up in (True, False)
    }
    return {
        "served": sorted({str(v.model) for v in answered}),
        "prod": registry.resolve(f"{NAME}@prod").reference,
        "users": len(answered),
        "failed": len(visits) - len(answered),
        "liked": liked,
        "satisfaction": liked / len(answered),
        "interval": wilson(liked, len(answered)),
        "votes": votes,
        "styles": dict(Counter(v.style for v in answered).most_common()),
        "liked_of_kind": {what: share_liked(answered, what) for what in KINDS},
        "seconds": time.monotonic() - began,
    }


def share_liked(visits: Sequence[Visit], what: str) -> float:
    """Of the answers to prompts of one kind."""
    of_kind = [v.liked for v in visits if kind(v.user.prompt) == what]
    return sum(of_kind) / len(of_kind)


def train(arm: Arm, registry: Any, storage: Path, url: str, *, seed: int, rate: float, alone: bool) -> Row:
    """One round by the package's own path, while others go on asking; through the gate, or not."""
    from bco_ray.config import parse_spec
    from bco_ray.demo.base import WORLD
    from bco_ray.errors import GateError
    from bco_ray.pipeline.resolve import resolve
    from bco_ray.pipeline.run import run_job
    from bco_ray.telemetry import Phases

    began, phases = time.monotonic(), Phases(quiet=True)
    asked = spec(arm, storage=storage, base=f"{NAME}@prod", feedback=arm.feedback, seed=seed, rate=rate)
    with Passers(url, f"{NAME}@prod", WORLD.train_prompts) as passers:
        job = resolve(parse_spec(asked, where="benchmarks/closed_loop.py"))
        outcome = run_alone(job, phases) if alone else run_job(job, phases)
        refused: list[str] = []
        try:
            registry.promote(NAME, outcome.version.version)
            passers.until_answered_by(outcome.version.reference)
        except GateError as error:
            refused = error.reasons
    evaluation = registry.evaluations(NAME).latest(outcome.version.version)
    matching = outcome.scored.matching
    return {
        "version": outcome.version.reference,
        "refused": refused,
        "votes_kept": outcome.scored.kept,
        "metrics": {name: evaluation.votes.metrics[name].model_dump() for name in ("auc", "kl")},
        "matching": {name: matching.get(name) for name in ("applied", "auc", "ess_fraction")},
        "asked_meanwhile": passers.asked,
        "failed": passers.failed,
        "phases": {time_.name: round(time_.seconds, 1) for time_ in phases.times},
        "seconds": time.monotonic() - began,
    }


def base_model(out: Path, seed: int) -> Path:
    """The demo's, one per seed, shared by the arms."""
    from bco_ray.demo.base import train_base

    place = out / f"base-{seed}"
    if not (place / "config.json").is_file():
        train_base(place, seed=seed)
    return place
