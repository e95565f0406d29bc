"""One delta or one per source? Votes of three sources whose users like other things, or like more; several seeds.

    python benchmarks/sources.py --seeds 0 1 2 3

The world, the networks and the count (share of what the best policy gains) are those of `alignment.py`; a source here
has prompts of its own, and an offset of its own on the log odds of a thumbs-up. `objective.shift.by_source` is compared
with one delta, with class means per source (what eq. 7 would be, source by source), with matching, and with KTO.
Learning rates are those that `alignment.py` found. Writes `benchmarks/results/sources.json` and `sources.png`.
"""

from __future__ import annotations

import argparse
import json
import platform
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from alignment import interval
from alignment_training import HALF_LIFE_ROWS, Shift, matching_weights, train
from alignment_world import TEST_PROMPTS, D, Votes, World
from torch import Tensor

from bco_ray.objective import RewardShift, ShiftSums, decay_per_window, source_offsets

RATES = {"bco": 0.01, "kto": 0.001}
SHRINKAGE_ROWS = 32
HARDLY_ANY = 1e-3
SEPARATE_ROWS = 64


@dataclass(frozen=True)
class Setting:
    """Three sources: `centre` of each one's prompts (first two of D numbers), log odds added to its thumbs, votes."""

    centre: tuple[tuple[float, float], ...]
    bias: tuple[float, ...]
    rows: tuple[int, ...]
    uneven: bool = False
    ways: tuple[str, ...] = ()


LARGE = ("one delta", "per source", "per source, not shrunk", "class means per source", "matched",
         "matched, per source", "kto")  # fmt: skip
EQUAL = ("one delta", "per source", "class means per source", "both", "matched", "matched, per source")
SETTINGS = {
    "10 : 1 : 0.1": Setting(((0.7, 0.7), (-0.7, 0.7), (0, -1)), (1.4, -1.4, 0), (7200, 720, 72), ways=LARGE),
    "equal, far apart": Setting(((1.5, 0), (-1.5, 0), (0, 1.5)), (1.4, -1.4, 0), (2700, 2700, 2600), ways=EQUAL),
    "no bias, uneven": Setting(
        ((1.5, 0), (-1.5, 0), (0, 1.5)), (0, 0, 0), (2700, 2700, 2600), uneven=True, ways=EQUAL[:4]
    ),
}
"""Thumbs-up by sigmoid(r* + 1.4) on the first source, sigmoid(r* - 1.4) on the second. `uneven`: answers to prompts of
the first source differ by twice as much as usual, those of the second hardly."""

Scores = dict[str, float]
"""Share of the best: `all`, and of each source's prompts."""


class Uneven(World):
    """Where there is much to choose between answers, and where there is little."""

    def value(self, prompt_ND: Tensor) -> Tensor:
        """r*(x, a), (N, A)."""
        return super().value(prompt_ND) * (1.1 + torch.tanh(2 * prompt_ND[:, :1]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3])
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    arguments.results.mkdir(exist_ok=True)
    found: dict[str, Any] = {"machine": platform.platform(), "seeds": arguments.seeds, "learning_rates": RATES}
    for name, setting in SETTINGS.items():
        of_seed = [one(setting, seed) for seed in arguments.seeds]
        found[name] = {way: [scores[way] for scores in of_seed] for way in setting.ways}
        print(table(name, found[name]), flush=True)  # noqa: T201
        (arguments.results / "sources.json").write_text(json.dumps(found, indent=1) + "\n")
    draw(found, arguments.results / "sources.png")


def one(setting: Setting, seed: int) -> dict[str, Scores]:
    """Each way of training on one seed's world and log."""
    world = (Uneven if setting.uneven else World)(seed)
    votes, source_N = cast(world, setting, seed)
    return {way: judged(world, setting, _trained(way, world, votes, source_N, seed)) for way in setting.ways}


def _trained(way: str, world: World, votes: Votes, source_N: Tensor, seed: int) -> torch.nn.Module:
    weights_N = matching_weights(votes) if way.startswith("matched") else torch.ones(len(votes))
    shrinkage = HARDLY_ANY if way.endswith("not shrunk") else SHRINKAGE_ROWS
    offset_N = offsets(votes, source_N, weights_N, shrinkage)
    shift = Shift()
    if way in ("class means per source", "both"):
        shift = ClassMeans(source_N, offset_N if way == "both" else None)
    elif "per source" in way:
        shift = Offsets(offset_N)
    loss = "kto" if way == "kto" else "bco"
    return train(world, votes, loss, seed=seed, learning_rate=RATES[loss], weights_N=weights_N, shift=shift)


def offsets(votes: Votes, source_N: Tensor, weights_N: Tensor, shrinkage_rows: float) -> Tensor:
    """(N,), as a run has them."""
    weights: dict[str | None, tuple[float, float]] = {}
    for source in source_N.unique().tolist():
        mine_N = source_N == source
        up, down = (float(weights_N[mine_N & (votes.label_N == label)].sum()) for label in (True, False))
        weights[str(source)] = (up, down)
    found = source_offsets(weights, shrinkage_rows=shrinkage_rows, most=16)
    return torch.tensor([found.of(str(source)) for source in source_N.tolist()])


class Offsets(Shift):
    """`objective.shift.by_source`: delta less a constant of each row's source."""

    def __init__(self, offset_N: Tensor) -> None:
        super().__init__()
        self._offset_N = offset_N

    def of(self, rows_B: Tensor) -> Tensor:
        """(B,)."""
        return self.delta - self._offset_N[rows_B]


class ClassMeans(Shift):
    """Eq. 7 of each source, shrunk to that of all: (k d_s + n d) / (k + n), k = 4 k+ k- / (k+ + k-) decayed rows.

    All sources forget by the rows of the window, whosever they are.
    """

    def __init__(self, source_N: Tensor, offset_N: Tensor | None) -> None:
        super().__init__()
        self._source_N, self._offset_N = source_N, offset_N
        self._of_source = [RewardShift(half_life_rows=HALF_LIFE_ROWS) for _ in source_N.unique()]

    def of(self, rows_B: Tensor) -> Tensor:
        """(B,)."""
        delta_B = torch.tensor([self._shrunk(own) for own in self._of_source])[self._source_N[rows_B]]
        return delta_B if self._offset_N is None else delta_B - self._offset_N[rows_B]

    def advance(self, rows_B: Tensor, reward_B: Tensor, label_B: Tensor) -> None:
        """Of all, and of each."""
        super().advance(rows_B, reward_B, label_B)
        decay = decay_per_window(len(rows_B), HALF_LIFE_ROWS)
        for source, own in enumerate(self._of_source):
            sums = RewardShift.observe(reward_B, label_B, self._source_N[rows_B] == source)
            self._of_source[source] = own.fold(sums, decay=decay) if sums != ShiftSums() else own

    def _shrunk(self, own: RewardShift) -> float:
        ups, downs = own.sums.chosen_count, own.sums.rejected_count
        rows = 4 * ups * downs / (ups + downs) if ups and downs else 0.0
        return (rows * own.delta + SEPARATE_ROWS * self.delta) / (rows + SEPARATE_ROWS)


def cast(world: World, setting: Setting, seed: int) -> tuple[Votes, Tensor]:
    """A log, and the source of each vote, (N,)."""
    random = torch.Generator().manual_seed(seed)
    parts = []
    for source, (rows, bias) in enumerate(zip(setting.rows, setting.bias, strict=True)):
        prompt_ND = torch.randn(rows, D, generator=random) + _centre(setting, source)
        answer_N = torch.multinomial(world.reference_logps(prompt_ND).exp(), 1, generator=random)[:, 0]
        value_N = world.value(prompt_ND).gather(1, answer_N[:, None])[:, 0]
        label_N = torch.rand(rows, generator=random) < torch.sigmoid(value_N + bias)
        parts.append((prompt_ND, answer_N, label_N, torch.full((rows,), source)))
    prompt_ND, answer_N, label_N, source_N = (torch.cat(part) for part in zip(*parts, strict=True))
    return Votes(prompt_ND, answer_N, label_N), source_N


def judged(world: World, setting: Setting, policy: torch.nn.Module) -> Scores:
    """On prompts that nobody has seen, as many of each source; `all` counts sources by their votes."""
    gains = []
    for source in range(len(setting.rows)):
        random = torch.Generator().manual_seed(999 + source)
        prompt_ND = torch.randn(TEST_PROMPTS, D, generator=random) + _centre(setting, source)
        with torch.no_grad():
            share = world.share_of_best(policy(prompt_ND), prompt_ND)
            best = world._gain(world.best_logps(prompt_ND), prompt_ND).item()
        gains.append((share, best * setting.rows[source]))
    whole = sum(share * best for share, best in gains) / sum(best for _, best in gains)
    return {"all": whole, **{f"source {source + 1}": share for source, (share, _) in enumerate(gains)}}


def _centre(setting: Setting, source: int) -> Tensor:
    return torch.tensor([*setting.centre[source], *[0.0] * (D - 2)])


def table(name: str, of_way: dict[str, list[Scores]]) -> str:
    """Markdown: a row per way, a column per source; the last is what it gains over one delta, seed by seed."""
    columns = list(next(iter(of_way.values()))[0])
    lines = ["", f"| {name} | {' | '.join(columns)} | over one delta |", "|---" * (len(columns) + 2) + "|"]
    for way, scores in of_way.items():
        cells = [interval([score[column] for score in scores]) for column in columns]
        ahead = [mine["all"] - one["all"] for mine, one in zip(scores, of_way["one delta"], strict=True)]
        said = [f"{mean:.3f} ± {half:.3f}" for mean, half in [*cells, interval(ahead)]]
        lines.append(f"| {way} | {' | '.join(said)} |")
    return "\n".join(lines)


def draw(found: dict[str, Any], path: Path) -> None:
    """A panel per setting, a bar per way: all prompts, whiskers as in the tables."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 3.8), layout="constrained")
    for axes, name in zip(figure.subplots(1, len(SETTINGS)), SETTINGS, strict=True):
        means, halves = zip(*(interval([s["all"] for s in scores]) for scores in found[name].values()), strict=True)
        axes.barh(list(found[name]), means, xerr=halves, capsize=3, color="tab:blue", alpha=0.8)
        axes.invert_yaxis()
        axes.set(title=name, xlabel="share of the best gain", xlim=(0, 1))
        axes.grid(axis="x", alpha=0.3)
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    main()
