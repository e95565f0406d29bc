"""A year of weekly rounds where the right answer is known: does the policy drift, collapse, or follow its users?

    python benchmarks/rounds.py --seeds 0 1 2          # some six minutes of one core

Each week the served policy answers 1,000 fresh prompts, a thumb comes back on each (one in ten is the wrong way
round), and a round trains from the served policy: against itself (`moved`) or against the first reference (`kept`), on
the new votes, on a mixture with older ones, or on the whole log. `stays`: users want the same all year; `drifts`: what
they want turns into something else, evenly, over the year. Every round takes the same number of steps. Draw, weights,
loss and shift are the package's own. Writes `benchmarks/results/rounds.json` and `rounds.png`.
"""

from __future__ import annotations

import argparse
import json
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from alignment import interval
from alignment_training import Policy
from alignment_world import World
from rounds_charts import draw
from rounds_training import Log, Mix, cast, mixed, trained
from torch import Tensor

WEEKS, VOTES, NOISE = 52, 1000, 0.1
TEST_PROMPTS = 2000
SHOWN_WEEKS = (1, 4, 13, 26, 52)
METRICS = ("share_of_best", "value", "kl", "entropy", "off_policy")


@dataclass(frozen=True)
class Arm:
    """One way to run the rounds. `kept`: the first reference stays the reference."""

    kept: bool
    mix: Mix


MIXES = {
    "new votes alone": Mix(),
    "older 0.25": Mix(older=0.25),
    "older 0.5, half-life 28 days": Mix(older=0.5, half_life_days=28),
    "older 0.5, off-policy 0.5": Mix(older=0.5, off_policy_weight=0.5),
    "whole log": Mix(whole=True),
    "whole log, half-life 28 days": Mix(whole=True, half_life_days=28),
}
ARMS = {
    **{f"moved, {name}": Arm(False, MIXES[name]) for name in ("new votes alone", "older 0.25", "whole log")},
    **{f"kept, {name}": Arm(True, mix) for name, mix in MIXES.items()},
}


class Users(World):
    """What they want turns from one random function towards another, as far as `turned` says (0 to 1)."""

    def __init__(self, seed: int) -> None:
        self.turned = 0.0
        self._other: World | None = None
        super().__init__(seed)
        self._other = World(seed + 5000)

    def value(self, prompt_ND: Tensor) -> Tensor:
        """As in `World`; both functions have the same spread, and so has what lies between."""
        angle = torch.tensor(self.turned * torch.pi / 2)
        here_NA = super().value(prompt_ND)
        return here_NA if self._other is None else angle.cos() * here_NA + angle.sin() * self._other.value(prompt_ND)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results")
    parser.add_argument("--weeks", type=int, default=WEEKS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    found: dict[str, Any] = {"machine": platform.platform(), "seeds": arguments.seeds, "weeks": arguments.weeks}
    for scenario in ("stays", "drifts"):
        found[scenario] = {}
        for name, arm in ARMS.items():
            years = [year(arm, seed, arguments.weeks, drifts=scenario == "drifts") for seed in arguments.seeds]
            found[scenario][name] = over_seeds(years)
        print(table(scenario, found[scenario], arguments.weeks), flush=True)  # noqa: T201
    arguments.results.mkdir(exist_ok=True)
    (arguments.results / "rounds.json").write_text(json.dumps(found) + "\n")
    draw(found, arguments.results / "rounds.png")


def year(arm: Arm, seed: int, weeks: int, *, drifts: bool) -> list[dict[str, float]]:
    """What the policy is like after each week, the first row before any."""
    users, log = Users(seed), Log()
    policy = Policy(users, seed)
    rows = [measured(users, policy, off_policy=0.0)]
    for week in range(weeks):
        users.turned = (week + 1) / weeks if drifts else 0.0
        log.add(cast(users, policy, VOTES, seed=1000 * seed + week, noise=NOISE), week)
        batch = mixed(log, week, arm.mix, salt=f"{seed}:{week}")
        policy = trained(users, policy, batch, kept=arm.kept, seed=1000 * seed + week)
        rows.append(measured(users, policy, off_policy=batch.off_policy))
    return rows


@torch.no_grad()
def measured(users: Users, policy: Policy, *, off_policy: float) -> dict[str, float]:
    """On fresh prompts, by what users want now. `kl`: from the first reference, in nats per answer, as `entropy` is."""
    prompts = users.prompts(TEST_PROMPTS, 999)
    logps_NA, reference_NA = policy(prompts), users.reference_logps(prompts)
    chance_NA = logps_NA.exp()
    return {
        "share_of_best": users.share_of_best(logps_NA, prompts),
        "value": float((chance_NA * users.value(prompts)).sum(1).mean()),
        "kl": float((chance_NA * (logps_NA - reference_NA)).sum(1).mean()),
        "entropy": float(-(chance_NA * logps_NA).sum(1).mean()),
        "off_policy": off_policy,
    }


def over_seeds(years: Sequence[list[dict[str, float]]]) -> dict[str, list[list[float]]]:
    """Metric -> [mean, half of its 95 % interval] per week."""
    return {
        metric: [
            [round(x, 4) for x in interval([year[week][metric] for year in years])] for week in range(len(years[0]))
        ]
        for metric in METRICS
    }


def table(scenario: str, found: dict[str, dict[str, list[list[float]]]], weeks: int) -> str:
    """Markdown: a row per arm; the share of the best in some weeks, all else after the last."""
    shown = [week for week in SHOWN_WEEKS if week <= weeks]
    heads = [*(f"week {week}" for week in shown), "value", "KL", "entropy", "off-policy"]
    lines = ["", scenario, f"| | {' | '.join(heads)} |", "|---" * (len(heads) + 1) + "|"]
    for name, of in found.items():
        shares = (_cell(of["share_of_best"][week]) for week in shown)
        last = (_cell(of[metric][weeks]) for metric in ("value", "kl", "entropy"))
        lines.append(f"| {name} | {' | '.join([*shares, *last])} | {of['off_policy'][weeks][0]:.0%} |")
    return "\n".join(lines)


def _cell(mean_and_half: Sequence[float]) -> str:
    return "{:.2f} ± {:.2f}".format(*mean_and_half)


if __name__ == "__main__":
    main()
