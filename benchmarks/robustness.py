"""Votes as they come: wrong ones, some given for length, many from few people. What helps, what it costs.

    python benchmarks/robustness.py --seeds 0 1 2

The worlds and trainings of `alignment.py` and the same measure, the share of what the best policy gains over the
reference. Each method has its own learning rate, the best of five on two worlds that are not used again, of votes with
one wrong label in five. Writes `benchmarks/results/robustness.json` and a picture.
"""

from __future__ import annotations

import argparse
import json
import platform
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from alignment import LEARNING_RATES, ROWS, judged, table
from alignment_training import Policy
from alignment_world import TEST_PROMPTS, Votes, World
from robustness_charts import draw
from robustness_training import Training, train_all
from robustness_world import LongWorld, capped, few_voters

from bco_ray.objective.lengths import LengthMatching, LengthSums

TUNED_ON, TUNED_WITH = (1000, 1001), 0.2
NOISE = (0.0, 0.1, 0.2, 0.3, 0.4)
PRESUMED = (0.0, 0.1, 0.2, 0.3)
WAYS: dict[str, dict[str, Any]] = {
    "bco": {},
    "bco, label_noise": {"how": "likelihood"},
    "bco, debiased": {"how": "debiased"},
    "bco, smoothing": {"how": "smoothing"},
    "kto": {"loss": "kto"},
    "dpo, pairs": {"loss": "dpo"},
    "dpo, pairs, label_noise": {"loss": "dpo", "how": "likelihood"},
}
"""Of each method: the loss, and what it does about a known share of wrong labels."""

CAPS = (None, 20, 5, 1)

Found = dict[str, dict[str, list[float]]]
"""Setting -> method -> a number per seed."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rates = tuned()
    found: dict[str, Any] = {"machine": platform.platform(), "seeds": arguments.seeds, "learning_rates": rates}
    arguments.results.mkdir(exist_ok=True)
    for part in (noise, lengths, caps, presumed, uneven_noise):
        for name, measured in part(arguments.seeds, rates).items():
            found[name] = measured
            print(table(name, measured), flush=True)  # noqa: T201
        (arguments.results / "robustness.json").write_text(json.dumps(found, indent=1) + "\n")
    draw(found, arguments.results / "robustness.png")


def tuned() -> dict[str, float]:
    """The best learning rate of each method."""
    trials = [(way, rate, seed) for way in WAYS for rate in LEARNING_RATES for seed in TUNED_ON]
    scores = scored([of_noise(World(s), s, way, TUNED_WITH, TUNED_WITH, {way: rate}) for way, rate, s in trials])
    total: dict[tuple[str, float], float] = {}
    for (way, rate, _), score in zip(trials, scores, strict=True):
        total[way, rate] = total.get((way, rate), 0) + score
    return {way: max(LEARNING_RATES, key=lambda rate: total[way, rate]) for way in WAYS}


def noise(seeds: Sequence[int], rates: dict[str, float]) -> dict[str, Found]:
    """So many labels are the wrong way round, and it is known how many."""

    def one(seed: int, wrong: float, way: str) -> Training:
        return of_noise(World(seed), seed, way, wrong, wrong, rates)

    return {"noise": over(seeds, {f"{wrong:.0%} wrong": wrong for wrong in NOISE}, list(WAYS), one)}


def presumed(seeds: Sequence[int], rates: dict[str, float]) -> dict[str, Found]:
    """So many are wrong, and another share is presumed."""
    ways = [f"{way} {share}" for way in ("bco, label_noise", "bco, debiased") for share in PRESUMED]

    def one(seed: int, wrong: float, way: str) -> Training:
        name, share = way.rsplit(" ", 1)
        return of_noise(World(seed), seed, name, wrong, float(share), rates)

    return {"presumed": over(seeds, {f"{wrong:.0%} wrong": wrong for wrong in NOISE[:4]}, ways, one)}


def uneven_noise(seeds: Sequence[int], rates: dict[str, float]) -> dict[str, Found]:
    """One label in five is wrong, and the classes are of unequal size."""
    ways = ["bco", "bco, label_noise", "kto"]

    def one(seed: int, ups: float, way: str) -> Training:
        votes = World(seed).votes(ROWS, seed, noise=0.2, up_share=ups)
        return of_noise(World(seed), seed, way, 0.2, 0.2, rates, votes)

    settings = {f"{ups:.0%} up": ups for ups in (0.25, 0.5, 0.75)}
    return {"uneven_noise": over(seeds, settings, ways, one)}


def of_noise(
    world: World, seed: int, way: str, wrong: float, share: float, rates: dict[str, float], votes: Votes | None = None
) -> Training:
    """A training on votes of which `wrong` are wrong, by a method that presumes `share` to be."""
    how = WAYS[way]
    if votes is None:
        paired = how.get("loss") == "dpo"
        votes = world.pairs(ROWS // 2, seed, noise=wrong) if paired else world.votes(ROWS, seed, noise=wrong)
    return Training(world, votes, seed, learning_rate=rates[way], label_noise=share if "how" in how else 0.0, **how)


def lengths(seeds: Sequence[int], rates: dict[str, float]) -> dict[str, Found]:
    """Votes are pulled by length, beyond what an answer is worth; or what it is worth goes with its length."""
    settings = {
        "no pull": (0.0, 0.0), "pull 0.5": (0.5, 0.0), "pull 1": (1.0, 0.0), "pull 2": (2.0, 0.0),
        "worth 0.5, no pull": (0.0, 0.5), "worth 0.5, pull 1": (1.0, 0.5),
    }  # fmt: skip
    ways = ["bco", "bco, length_matching", "bco, reward by length", "kto", "kto, length_matching"]

    def one(seed: int, setting: tuple[float, float], way: str) -> Training:
        world = LongWorld(seed, correlation=setting[1])
        votes, loss = world.pulled_votes(ROWS, seed, pull=setting[0]), way.split(",")[0]
        tokens_N = world.tokens(votes.prompt_ND).gather(1, votes.answer_N[:, None])[:, 0]
        weights = length_weights(votes, tokens_N) if way.endswith("length_matching") else None
        scale = tokens_N.double().mean().float() / tokens_N if way.endswith("reward by length") else None
        return Training(world, votes, seed, loss, rates[loss], weights_N=weights, scale_N=scale)

    def measured(training: Training, policy: Policy) -> dict[str, float]:
        world: LongWorld = training.world  # type: ignore[assignment]
        prompts = world.prompts(TEST_PROMPTS, 999)
        with torch.no_grad():
            logps, best = policy(prompts), world.best_logps(prompts)
        return {
            "length": judged(world, policy),
            "length_correlation": world.length_correlation(logps, prompts),
            "length_of_best": world.mean_tokens(logps, prompts) / world.mean_tokens(best, prompts),
        }

    return measured_over(seeds, settings, ways, one, measured)


def length_weights(votes: Votes, tokens_N: torch.Tensor) -> torch.Tensor:
    """By the project's own length matching."""
    sums = LengthSums.of(tokens_N.numpy(), votes.label_N.numpy(), torch.ones(len(votes)).numpy())
    return torch.from_numpy(LengthMatching.fit(sums).weights(tokens_N.numpy(), votes.label_N.numpy())).float()


def caps(seeds: Sequence[int], rates: dict[str, float]) -> dict[str, Found]:
    """Ten people cast three votes of five: by another taste than everybody's, or by the same."""
    names = {None: "no cap", **{cap: f"cap {cap}" for cap in CAPS if cap}}
    ways = [f"{loss}, {names[cap]}" for loss in ("bco", "kto") for cap in CAPS]
    cap_of = {f"{loss}, {name}": cap for loss in ("bco", "kto") for cap, name in names.items()}

    def one(seed: int, other: bool, way: str) -> Training:
        world, loss = World(seed), way.split(",")[0]
        votes, user_N = few_voters(world, World(seed + 500) if other else world, seed)
        return Training(world, capped(votes, user_N, cap_of[way]), seed, loss, rates[loss])

    return {"caps": over(seeds, {"another taste": True, "the same taste": False}, ways, one)}


def scored(trainings: Sequence[Training]) -> list[float]:
    """The share of the best of each."""
    return [judged(one.world, policy) for one, policy in zip(trainings, train_all(trainings), strict=True)]


def over(
    seeds: Sequence[int], settings: dict[str, Any], ways: Sequence[str], one: Callable[[int, Any, str], Training]
) -> Found:
    """Each seed has its own world, log and first weights; all trainings that can be are done side by side."""
    named = measured_over(seeds, settings, ways, one, lambda training, policy: {"": judged(training.world, policy)})
    return named[""]


def measured_over(
    seeds: Sequence[int], settings: dict[str, Any], ways: Sequence[str], one: Callable[[int, Any, str], Training],
    measured: Callable[[Training, Policy], dict[str, float]],
) -> dict[str, Found]:  # fmt: skip
    """As `over`, of several numbers: measure -> what `over` gives of it."""
    places = [(name, way, seed) for name in settings for way in ways for seed in seeds]
    trainings = [one(seed, settings[name], way) for name, way, seed in places]
    found: dict[str, Found] = {}
    for (name, way, _), training, policy in zip(places, trainings, train_all(trainings), strict=True):
        for measure, value in measured(training, policy).items():
            found.setdefault(measure, {}).setdefault(name, {}).setdefault(way, []).append(value)
    return found


if __name__ == "__main__":
    main()
