"""One round of `rounds.py`: thumbs on what a policy says, the mixture with older ones, and a training from that policy.

Shapes as in `alignment_world`.
"""

from __future__ import annotations

import copy
from collections import Counter
from dataclasses import dataclass, field

import numpy as np
import torch
from alignment_training import Policy
from alignment_world import BETA, D, Votes, World
from torch import Tensor

from bco_ray.objective import RewardShift, bco_row_losses, implicit_rewards
from bco_ray.scoring.mixing import DAY_SECONDS, age_factors, least_bin, log2_ages, priority_bins, uniform, wanted_older

STEPS, ROWS_PER_STEP, LEARNING_RATE = 20, 256, 5e-3
HALF_LIFE_ROWS = 2 * ROWS_PER_STEP
WEEK_DAYS = 7


@dataclass(frozen=True)
class Mix:
    """As the spec's `rounds`; `whole`: on all votes there are, every week."""

    older: float = 0.0
    half_life_days: float | None = None
    off_policy_weight: float = 1.0
    whole: bool = False


@dataclass
class Log:
    """All votes so far, the week each was cast in, and when (unix seconds)."""

    weeks: list[Votes] = field(default_factory=list)

    def add(self, votes: Votes, week: int) -> None:
        """Those of the next week."""
        assert week == len(self.weeks)
        self.weeks.append(votes)

    @property
    def votes(self) -> Votes:
        """All of them."""
        columns = zip(*((v.prompt_ND, v.answer_N, v.label_N) for v in self.weeks), strict=True)
        return Votes(*map(torch.cat, columns))

    def cast_in(self) -> np.ndarray:
        """(N,) the week of each."""
        return np.repeat(np.arange(len(self.weeks)), [len(v) for v in self.weeks])


@dataclass(frozen=True)
class Batch:
    """What a round trains on. `off_policy`: share of the votes on answers of earlier policies."""

    votes: Votes
    weight_N: Tensor
    off_policy: float


@torch.no_grad()
def cast(world: World, policy: Policy, count: int, *, seed: int, noise: float) -> Votes:
    """Thumbs on one answer of the policy to each of `count` fresh prompts."""
    random = torch.Generator().manual_seed(seed)
    prompt_ND = torch.randn(count, D, generator=random)
    answer_N = torch.multinomial(policy(prompt_ND).exp(), 1, generator=random)[:, 0]
    value_N = world.value(prompt_ND).gather(1, answer_N[:, None])[:, 0]
    label_N = torch.rand(count, generator=random) < torch.sigmoid(value_N)
    label_N ^= torch.rand(count, generator=random) < noise
    return Votes(prompt_ND, answer_N, label_N)


def mixed(log: Log, week: int, mix: Mix, *, salt: str) -> Batch:
    """The votes that the round of `week` trains on, and what each counts."""
    week_N = log.cast_in()
    older_N = week_N < week
    seconds_N = (week_N + 0.5) * WEEK_DAYS * DAY_SECONDS
    age_N = np.zeros(len(week_N)) if mix.half_life_days is None else log2_ages(seconds_N, mix.half_life_days)
    drawn_N, least = ~older_N | mix.whole, None
    if mix.older:
        bins_N = priority_bins(age_N, uniform([str(n) for n in range(len(week_N))], salt))
        least = least_bin(Counter(bins_N[older_N].tolist()), wanted_older(int((~older_N).sum()), mix.older))
        drawn_N = ~older_N | (True if least is None else bins_N >= least)
    factor_N = np.where(older_N, mix.off_policy_weight, 1.0)
    factor_N *= age_factors(age_N, older_N & (not mix.whole), newest=float(age_N.max()), least=least)
    rows_N = torch.from_numpy(np.flatnonzero(drawn_N))
    votes = log.votes
    votes = Votes(votes.prompt_ND[rows_N], votes.answer_N[rows_N], votes.label_N[rows_N])
    weight_N = torch.from_numpy(factor_N)[rows_N].float()
    for label in (True, False):
        weight_N[votes.label_N == label] /= weight_N[votes.label_N == label].mean()
    return Batch(votes, weight_N, float(older_N[drawn_N].mean()))


def trained(world: World, start: Policy, batch: Batch, *, kept: bool, seed: int) -> Policy:
    """The policy after STEPS steps from `start`, measured against the first reference (`kept`) or against `start`."""
    policy, random = copy.deepcopy(start), torch.Generator().manual_seed(seed)
    votes = batch.votes
    with torch.no_grad():
        logps_NA = world.reference_logps(votes.prompt_ND) if kept else start(votes.prompt_ND)
    reference_N = _of_answers(logps_NA, votes.answer_N)
    windows = torch.randint(len(votes), (STEPS, ROWS_PER_STEP), generator=random)
    shift = _probed(policy, batch, reference_N, windows) if kept else RewardShift(half_life_rows=HALF_LIFE_ROWS)
    optimizer = torch.optim.AdamW(policy.parameters(), lr=LEARNING_RATE, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, STEPS)
    for rows_B in windows:
        reward_B = _rewards(policy, batch, reference_N, rows_B)
        label_B = votes.label_N[rows_B]
        loss_B = batch.weight_N[rows_B] * bco_row_losses(reward_B, label_B, delta=shift.delta)
        optimizer.zero_grad()
        (loss_B[label_B].mean() / 2 + loss_B[~label_B].mean() / 2).backward()
        optimizer.step()
        schedule.step()
        shift = shift.advance(RewardShift.observe(reward_B, label_B))
    return policy


@torch.no_grad()
def _probed(policy: Policy, batch: Batch, reference_N: Tensor, windows: Tensor) -> RewardShift:
    """As `training/probe.py` does it: the rewards of a half-life of rows, before any step."""
    shift = RewardShift(half_life_rows=HALF_LIFE_ROWS)
    for rows_B in windows:
        if shift.rows_seen >= HALF_LIFE_ROWS:
            break
        reward_B = _rewards(policy, batch, reference_N, rows_B)
        shift = shift.advance(RewardShift.observe(reward_B, batch.votes.label_N[rows_B]))
    return shift


def _rewards(policy: Policy, batch: Batch, reference_N: Tensor, rows_B: Tensor) -> Tensor:
    votes = batch.votes
    logp_B = _of_answers(policy(votes.prompt_ND[rows_B]), votes.answer_N[rows_B])
    return implicit_rewards(logp_B, reference_N[rows_B], beta=BETA)


def _of_answers(logps_NA: Tensor, answer_N: Tensor) -> Tensor:
    return logps_NA.gather(1, answer_N[:, None])[:, 0]
