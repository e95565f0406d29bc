"""One training on `alignment_world`: a small network beside the reference, the project's own losses, shift and weights.

Shapes as there; B rows of a step.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from alignment_world import BETA, HIDDEN, A, D, Votes, World
from torch import Tensor, nn

from bco_ray.objective import (
    LOSSES,
    RewardShift,
    density_ratio_from_logits,
    fit_logistic,
    kto_reference_point,
    loss_sums,
    window_loss,
)

STEPS, ROWS_PER_STEP = 600, 256
HALF_LIFE_ROWS = 4 * ROWS_PER_STEP
MIN_RATIO, MAX_RATIO = 0.1, 10.0

Seen = Callable[["State"], None]


class Policy(nn.Module):
    """The reference's logits plus a network's, which is 0 at first."""

    def __init__(self, world: World, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self._world = world
        self._network = nn.Sequential(nn.Linear(D, HIDDEN), nn.Tanh(), nn.Linear(HIDDEN, A))
        nn.init.zeros_(self._network[2].weight)
        nn.init.zeros_(self._network[2].bias)

    def forward(self, prompt_ND: Tensor) -> Tensor:
        """log pi(a given x), (N, A)."""
        return torch.log_softmax(self._world.reference_logps(prompt_ND) + self._network(prompt_ND), dim=1)


@dataclass(frozen=True)
class State:
    """A step, before it is taken."""

    step: int
    policy: Policy
    delta: float
    z_ref: float


class Shift:
    """One delta for all rows, as training has it."""

    def __init__(self) -> None:
        self._state = RewardShift(half_life_rows=HALF_LIFE_ROWS)

    @property
    def delta(self) -> float:
        """Before the step."""
        return self._state.delta

    def of(self, rows_B: Tensor) -> float | Tensor:
        """What these rows of the log are measured by."""
        return self.delta

    def advance(self, rows_B: Tensor, reward_B: Tensor, label_B: Tensor) -> None:
        """After a step on these rows."""
        self._state = self._state.advance(RewardShift.observe(reward_B, label_B))


def train(
    world: World, votes: Votes, loss: str, *, seed: int, learning_rate: float, weights_N: Tensor | None = None,
    seen: Seen | None = None, shift: Shift | None = None,
) -> Policy:  # fmt: skip
    """The policy after STEPS steps of AdamW whose learning rate falls to 0. Losses on pairs get whole pairs."""
    policy, random = Policy(world, seed), torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(policy.parameters(), lr=learning_rate, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, STEPS)
    reference_N = world.reference_logps(votes.prompt_ND).gather(1, votes.answer_N[:, None])[:, 0]
    weights_N = torch.ones(len(votes)) if weights_N is None else weights_N
    shift = shift or Shift()
    for step in range(STEPS):
        rows_B = _drawn(votes, LOSSES[loss].units, random)
        logps_BA = policy(votes.prompt_ND[rows_B])
        logp_B = logps_BA.gather(1, votes.answer_N[rows_B, None])[:, 0]
        z_ref = _mismatched(world, votes, rows_B, logps_BA.detach()) if loss == "kto" else 0.0
        if seen:
            seen(State(step, policy, shift.delta, z_ref))
        label_B, weight_B = votes.label_N[rows_B], weights_N[rows_B]
        delta = shift.of(rows_B)
        sums = loss_sums(
            loss, logp_B, reference_N[rows_B], label_B, beta=BETA, delta=delta, z_ref=z_ref, weights_B=weight_B
        )
        optimizer.zero_grad()
        of_window_loss(sums, loss, label_B).backward()
        optimizer.step()
        schedule.step()
        shift.advance(rows_B, BETA * (logp_B - reference_N[rows_B]), label_B)
    return policy


def of_window_loss(sums: object, loss: str, label_B: Tensor) -> Tensor:
    """Two means, each class counting half: with KTO that is its lambda_D n_D = lambda_U n_U."""
    gain = LOSSES[loss].gain
    totals = {"chosen_total": float(label_B.sum()), "rejected_total": float((~label_B).sum())}
    result: Tensor = window_loss(sums, desirable_weight=gain, undesirable_weight=gain, **totals)  # type: ignore[arg-type]
    return result


def matching_weights(votes: Votes) -> Tensor:
    """What a logistic regression on the prompt says of p+ / p-, for thumbs-down rows; 1 for thumbs-up."""
    features_ND, label_N = votes.prompt_ND.numpy().astype(np.float64), votes.label_N.numpy()
    model = fit_logistic(lambda: iter([(features_ND, label_N)]))
    return _only_down(votes, model.logits(features_ND))


def ratio_weights(votes: Votes, ratio_N: Tensor) -> Tensor:
    """The same from a known ratio."""
    return _only_down(votes, ratio_N.double().log().numpy())


def _only_down(votes: Votes, logits_N: np.ndarray) -> Tensor:
    down_N = ~votes.label_N.numpy()
    weights_N = np.ones(len(votes))
    weights_N[down_N] = density_ratio_from_logits(
        logits_N[down_N], n_chosen=int((~down_N).sum()), n_rejected=int(down_N.sum()), balanced=True,
        min_density_ratio=MIN_RATIO, max_density_ratio=MAX_RATIO,
    )  # fmt: skip
    return torch.from_numpy(weights_N).float()


def _drawn(votes: Votes, units: str, random: torch.Generator) -> Tensor:
    """Rows of a step: half of each class as training draws them, or whole pairs."""
    if units == "pairs":
        pairs = torch.randint(len(votes) // 2, (ROWS_PER_STEP // 2,), generator=random)
        return torch.stack([2 * pairs, 2 * pairs + 1], dim=1).flatten()
    if units == "chosen":
        ups = torch.nonzero(votes.label_N)[:, 0]
        return ups[torch.randint(len(ups), (ROWS_PER_STEP,), generator=random)]
    share = float(votes.label_N.float().mean())
    ups_in_step = min(ROWS_PER_STEP - 1, max(1, round(ROWS_PER_STEP * share)))
    classes = ((True, ups_in_step), (False, ROWS_PER_STEP - ups_in_step))
    of_class = [(torch.nonzero(votes.label_N == label)[:, 0], rows) for label, rows in classes]
    return torch.cat([found[torch.randint(len(found), (rows,), generator=random)] for found, rows in of_class])


def _mismatched(world: World, votes: Votes, rows_B: Tensor, logps_BA: Tensor) -> float:
    """KTO's reference point: the answers of other prompts."""
    answer_B = votes.answer_N[rows_B].roll(1)
    reference_BA = world.reference_logps(votes.prompt_ND[rows_B])
    ratio_B = (logps_BA - reference_BA).gather(1, answer_B[:, None])[:, 0]
    return kto_reference_point(float(ratio_B.sum()), len(ratio_B))
