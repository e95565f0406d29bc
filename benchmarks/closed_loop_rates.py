"""Learning rates for `closed_loop.py`: the same grid for every arm, on a seed that is not used again.

One round in this process, without a server: the same kind of people, asked by the base model; each arm is trained at
each rate, and judged by the hidden rule on the answers that the next round's people would get. The best one is taken.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from closed_loop_rounds import Arm, base_model, spec
from closed_loop_users import MAX_TOKENS, User, users

RATES = (5e-4, 1e-3, 2e-3, 4e-3)
TUNED_ON = 1000


def try_rates(arms: Sequence[Arm], *, out: Path, people: int) -> dict[str, dict[str, float]]:
    """By arm and rate: the next round's satisfaction."""
    from bco_ray.demo.base import WORLD

    base, place = base_model(out, TUNED_ON), out / "rates"
    place.mkdir(parents=True, exist_ok=True)
    first, second = (users(WORLD.train_prompts, people, seed=TUNED_ON, round_=n) for n in (0, 1))
    log = place / "votes.jsonl"
    log.write_text("\n".join(json.dumps(vote) for vote in votes(base, first)) + "\n")
    tried: dict[str, dict[str, float]] = {}
    for arm in arms:
        models = {rate: trained(arm, place, base, log, rate) for rate in RATES}
        tried[arm.name] = {f"{rate:g}": satisfaction(model, second) for rate, model in models.items()}
        print(arm.name, tried[arm.name], flush=True)  # noqa: T201
    return tried


def answers(model: Path, people: Sequence[User]) -> list[str]:
    """One each, sampled in this process."""
    from bco_ray.demo.base import load_model
    from bco_ray.models.generate import generate

    asked = [user.prompt.messages for user in people]
    made = generate(*load_model(model), asked, max_new_tokens=MAX_TOKENS, temperature=1.0, seed=TUNED_ON)
    return [answer.text for answer in made]


def votes(model: Path, people: Sequence[User]) -> list[dict[str, Any]]:
    """Of those who vote, as a log has them."""
    from bco_ray.demo.world import thumbs_up

    rows = []
    for user, answer in zip(people, answers(model, people), strict=True):
        thumb = user.thumb(thumbs_up(user.prompt, answer))
        if thumb is not None and answer:
            said = [{"role": "assistant", "content": answer}]
            rows.append({"id": f"vote-{user.number}", "prompt": user.prompt.messages, "completion": said,
                         "label": thumb, "user": f"user-{user.number}"})  # fmt: skip
    return rows


def satisfaction(model: Path, people: Sequence[User]) -> float:
    """Without noise and without a server."""
    from bco_ray.demo.world import thumbs_up

    liked = [thumbs_up(u.prompt, answer) for u, answer in zip(people, answers(model, people), strict=True)]
    return sum(liked) / len(liked)


def trained(arm: Arm, place: Path, base: Path, log: Path, rate: float) -> Path:
    """The model after one round, trained in this process; scoring runs on the cluster, once per kind of matching."""
    from bco_ray.config import parse_spec
    from bco_ray.pipeline.resolve import resolve
    from bco_ray.pipeline.run import score_job, train_setup
    from bco_ray.telemetry import Phases
    from bco_ray.training.gang import SoloGang
    from bco_ray.training.loop import train as train_here

    first = replace(arm, reference=None)  # the first round's is its base
    asked = spec(first, storage=place / "runs", base=str(base), feedback=str(log), seed=TUNED_ON, rate=rate)
    job = resolve(parse_spec(asked, where="benchmarks/closed_loop_rates.py"))
    score_job(job, Phases(quiet=True))
    job.run_directory.mkdir(parents=True, exist_ok=True)
    train_here(train_setup(job), SoloGang())
    return job.run_directory / "model"
