"""Does it align? The paper's claims where the right answer is known, small networks, several seeds, with intervals.

    python benchmarks/alignment.py --seeds 0 1 2 3 4

(a) pairs taken apart, (b) thumbs whose prompts differ, (c) 1:9 to 9:1, (d) wrong labels, (e) the bound along the way.
What counts is the share of what the best policy gains over the reference (`World.share_of_best`), on fresh prompts.
Each loss has its own learning rate, the best of five on a world that is not used again. Writes
`benchmarks/results/alignment.json` and one picture per claim beside it.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from alignment_charts import draw_all
from alignment_training import State, matching_weights, ratio_weights, train
from alignment_world import BETA, TEST_PROMPTS, Votes, World, true_ratio

from bco_ray.objective import bco_pair, dpo, error_term

ROWS = 8000
LEARNING_RATES = (3e-4, 1e-3, 3e-3, 1e-2, 3e-2)
TUNED_ON = 1000
UNPAIRED, PAIRED = ("bco", "bce", "kto", "apo_zero_unpaired"), ("dpo", "bco_pair")
SELECTION = 1.0
UP_SHARES = (0.1, 0.3, 0.5, 0.7, 0.9)
NOISE = (0.0, 0.1, 0.2, 0.3, 0.4)
WATCHED, EVERY, SHOWN = ("bco", "bce", "kto"), 10, ("0", "60", "200", "400", "590")

Rates = dict[str, float]
Found = dict[str, dict[str, list[float]]]
"""Setting -> method -> a share of the best per seed."""
Along = dict[str, Found]
"""Loss -> step -> what is measured -> a number per seed."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rates = tuned()
    found: dict[str, Any] = {"machine": platform.platform(), "seeds": arguments.seeds, "learning_rates": rates}
    for claim in (pairs_taken_apart, other_prompts, imbalance, noise):
        found[claim.__name__] = claim(arguments.seeds, rates)
        print(table(claim.__doc__ or "", found[claim.__name__]), flush=True)  # noqa: T201
    found["along_a_training"] = along = along_a_training(arguments.seeds, rates)
    for loss in WATCHED:
        print(table(f"{along_a_training.__doc__} Loss: {loss}", shown(along[loss])), flush=True)  # noqa: T201
    arguments.results.mkdir(exist_ok=True)
    (arguments.results / "alignment.json").write_text(json.dumps(found, indent=1) + "\n")
    draw_all(found, arguments.results)


def tuned() -> Rates:
    """The best learning rate of each loss, on pairs of a world of its own."""
    world = World(TUNED_ON)
    votes = world.pairs(ROWS // 2, TUNED_ON)
    scores = {
        loss: {rate: judged(world, train(world, votes, loss, seed=0, learning_rate=rate)) for rate in LEARNING_RATES}
        for loss in (*PAIRED, *UNPAIRED)
    }
    return {loss: max(of_rate, key=of_rate.__getitem__) for loss, of_rate in scores.items()}


def judged(world: World, policy: torch.nn.Module) -> float:
    """The share of the best, on prompts that nobody has seen."""
    prompts = world.prompts(TEST_PROMPTS, 999)
    with torch.no_grad():
        return world.share_of_best(policy(prompts), prompts)


def pairs_taken_apart(seeds: Sequence[int], rates: Rates) -> Found:
    """(a) Bradley-Terry pairs: losses that see the pairs, and losses that see each half as a thumb."""

    def one(world: World, seed: int) -> dict[str, float]:
        votes = world.pairs(ROWS // 2, seed)
        return {loss: score(world, votes, loss, seed, rates) for loss in (*PAIRED, *UNPAIRED)}

    return {"4000 pairs": over(seeds, one)}


def other_prompts(seeds: Sequence[int], rates: Rates) -> Found:
    """(b) Who likes what they got votes on some prompts, who does not on others; the same number of votes for all."""

    def one(world: World, seed: int) -> dict[str, float]:
        votes = world.votes(ROWS, seed, selection=SELECTION)
        ratio_N = true_ratio(votes.prompt_ND, votes, world, SELECTION)
        ways: dict[str, tuple[Votes, str, Any]] = {
            "bco, matched": (votes, "bco", matching_weights(votes)),
            "bco, true ratio": (votes, "bco", ratio_weights(votes, ratio_N)),
            "bco, not matched": (votes, "bco", None),
            "bce, matched": (votes, "bce", matching_weights(votes)),
            "kto": (votes, "kto", None),
            "bco, same prompts": (world.votes(ROWS, seed), "bco", None),
        }
        return {name: score(world, v, loss, seed, rates, weights) for name, (v, loss, weights) in ways.items()}

    return {f"selection {SELECTION}": over(seeds, one)}


def imbalance(seeds: Sequence[int], rates: Rates) -> Found:
    """(c) From one thumbs-up in ten to nine, the same number of votes."""

    def at(share: float) -> Callable[[World, int], dict[str, float]]:
        def one(world: World, seed: int) -> dict[str, float]:
            votes = world.votes(ROWS, seed, up_share=share)
            return {loss: score(world, votes, loss, seed, rates) for loss in ("bco", "bce", "kto")}

        return one

    return {f"{share:.0%} up": over(seeds, at(share)) for share in UP_SHARES}


def noise(seeds: Sequence[int], rates: Rates) -> Found:
    """(d) So many labels are the wrong way round; of pairs, the wrong one is called the better."""

    def at(wrong: float) -> Callable[[World, int], dict[str, float]]:
        def one(world: World, seed: int) -> dict[str, float]:
            votes, pairs = world.votes(ROWS, seed, noise=wrong), world.pairs(ROWS // 2, seed, noise=wrong)
            found = {loss: score(world, votes, loss, seed, rates) for loss in ("bco", "bce", "kto")}
            return {**found, "dpo, pairs": score(world, pairs, "dpo", seed, rates)}

        return one

    return {f"{wrong:.0%} wrong": over(seeds, at(wrong)) for wrong in NOISE}


def along_a_training(seeds: Sequence[int], rates: Rates) -> Along:
    """(e) On pairs: what DPO would lose, the bounds above it with and without the shift, and what separates them."""
    return {loss: _joined([_watched(World(seed), seed, loss, rates) for seed in seeds]) for loss in WATCHED}


def _watched(world: World, seed: int, loss: str, rates: Rates) -> list[dict[str, float]]:
    """The numbers of one training, every EVERY steps."""
    pairs, rows = world.pairs(ROWS // 2, seed), list[dict[str, float]]()
    reference_N = world.reference_logps(pairs.prompt_ND).gather(1, pairs.answer_N[:, None])[:, 0]

    def seen(state: State) -> None:
        if state.step % EVERY == 0:
            with torch.no_grad():
                rows.append(_measured(state, pairs, reference_N))

    train(world, pairs, loss, seed=seed, learning_rate=rates[loss], seen=seen)
    return rows


def _joined(of_seed: Sequence[Sequence[dict[str, float]]]) -> dict[str, dict[str, list[float]]]:
    return {
        str(EVERY * number): {name: [row[name] for row in rows] for name in rows[0]}
        for number, rows in enumerate(zip(*of_seed, strict=True))
    }


def _measured(state: State, pairs: Votes, reference_N: torch.Tensor) -> dict[str, float]:
    """On all pairs, with the delta that the training has at this step."""
    logp_N = state.policy(pairs.prompt_ND).gather(1, pairs.answer_N[:, None])[:, 0]
    reward_N, delta = BETA * (logp_N - reference_N), state.delta
    up_P, down_P = reward_N[0::2], reward_N[1::2]
    with_shift, without = (float(bco_pair(up_P, down_P, delta=shift).mean()) for shift in (delta, 0.0))
    return {
        "dpo": float(dpo(up_P, down_P).mean()),
        "bound with the shift": with_shift,
        "bound without": without,
        "less by the shift": without - with_shift,
        "error term with the shift": float(error_term(reward_N, pairs.label_N, delta=delta)),
        "error term without": float(error_term(reward_N, pairs.label_N, delta=0.0)),
        "delta": delta,
        "z_ref": state.z_ref,
    }


def score(world: World, votes: Votes, loss: str, seed: int, rates: Rates, weights: torch.Tensor | None = None) -> float:
    """The share of the best of a policy trained so."""
    return judged(world, train(world, votes, loss, seed=seed, learning_rate=rates[loss], weights_N=weights))


def over(seeds: Sequence[int], one: Callable[[World, int], dict[str, float]]) -> dict[str, list[float]]:
    """Each seed has its own world, log and first weights."""
    of_seed = [one(World(seed), seed) for seed in seeds]
    return {name: [scores[name] for scores in of_seed] for name in of_seed[0]}


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Mean, and half the width of its 95 % interval (Student's t over seeds)."""
    from scipy.stats import t

    if len(values) < 2:
        return values[0], float("nan")
    half = t.ppf(0.975, len(values) - 1) * statistics.stdev(values) / len(values) ** 0.5
    return statistics.fmean(values), float(half)


def table(title: str, found: Found) -> str:
    """Markdown: a row per method, a column per setting."""
    methods = next(iter(found.values()))
    lines = ["", title, f"| | {' | '.join(found)} |", "|---" * (len(found) + 1) + "|"]
    for method in methods:
        cells = (f"{mean:.3f} ± {half:.3f}" for mean, half in (interval(of[method]) for of in found.values()))
        lines.append(f"| {method} | {' | '.join(cells)} |")
    return "\n".join(lines)


def shown(along: Found) -> Found:
    """Of the steps that are shown, what there are numbers of."""
    return {f"step {step}": along[step] for step in SHOWN}


if __name__ == "__main__":
    main()
