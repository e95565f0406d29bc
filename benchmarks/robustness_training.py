"""Trainings of `alignment_training`, those that differ in nothing but data done side by side: as many small networks
in one tensor, each with its own rows, shift and optimizer state, so that a step costs little more than one of them.

Shapes: K trainings, S steps, B rows of a step, D what a prompt says, H hidden, A answers.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial

import torch
from alignment_training import HALF_LIFE_ROWS, STEPS, Policy, _drawn
from alignment_world import BETA, Votes, World
from torch import Tensor, nn

from bco_ray.objective import (
    LOSSES,
    RewardShift,
    ShiftSums,
    apo_zero_unpaired,
    bce,
    bco_row_losses,
    dpo,
    kto,
    kto_reference_point,
)  # fmt: skip

ROW_LOSSES = {"bco": bco_row_losses, "bce": bce, "kto": kto, "apo_zero_unpaired": apo_zero_unpaired}
TRIED = ("smoothing", "debiased")
"""Other answers to wrong labels, made here of the row losses: see `_tried`."""


@dataclass(frozen=True)
class Training:
    """One of them. `how`: what is done about `label_noise`: `likelihood` is the project's, the others are TRIED.

    `weights_N` of the votes; `scale_N`: what each row's log-ratio is multiplied by.
    """

    world: World
    votes: Votes
    seed: int
    loss: str = "bco"
    learning_rate: float = 1e-2
    label_noise: float = 0.0
    how: str = "likelihood"
    weights_N: Tensor | None = None
    scale_N: Tensor | None = None

    @property
    def alike(self) -> tuple[object, ...]:
        """Those with the same can be done side by side."""
        return self.loss, self.how if self.label_noise else "", self.label_noise


def train_all(trainings: Iterable[Training]) -> list[Policy]:
    """The policy of each, in their order."""
    asked = list(trainings)
    groups: dict[tuple[object, ...], list[int]] = defaultdict(list)
    for place, training in enumerate(asked):
        groups[training.alike].append(place)
    found: dict[int, Policy] = {}
    for places in groups.values():
        found |= dict(zip(places, _side_by_side([asked[place] for place in places]), strict=True))
    return [found[place] for place in range(len(asked))]


def _side_by_side(group: list[Training]) -> list[Policy]:
    policies = [Policy(one.world, one.seed) for one in group]
    columns = zip(*(policy.parameters() for policy in policies), strict=True)
    weights = [torch.stack(same).detach().requires_grad_() for same in columns]
    rate_K = torch.tensor([one.learning_rate for one in group])
    optimizer = torch.optim.AdamW(weights, lr=1.0, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, STEPS)
    rows, shifts = _Rows(group), [RewardShift(half_life_rows=HALF_LIFE_ROWS) for _ in group]
    row_losses = _row_losses(group[0])
    for step in range(STEPS):
        prompt_KBD, answer_KB, label_KB, reference_KBA, weight_KB, scale_KB = rows.of(step)
        logps_KBA = torch.log_softmax(reference_KBA + _network(weights, prompt_KBD), dim=2)
        ratio_KBA = logps_KBA - reference_KBA
        reward_KB = BETA * scale_KB * ratio_KBA.gather(2, answer_KB[:, :, None])[:, :, 0]
        middle_K1 = _middle(group[0].loss, shifts, ratio_KBA.detach(), answer_KB)
        loss_KB = weight_KB * row_losses(reward_KB, label_KB, middle_K1)
        gain = LOSSES[group[0].loss].gain
        means_2K = [torch.where(side_KB, loss_KB, 0).sum(1) / side_KB.sum(1) for side_KB in (label_KB, ~label_KB)]
        optimizer.zero_grad()
        (gain * (means_2K[0] + means_2K[1])).sum().backward()
        _step(optimizer, weights, rate_K)
        schedule.step()
        shifts = [s.advance(sums) for s, sums in zip(shifts, _shift_sums(reward_KB.detach(), label_KB), strict=True)]
    for place, policy in enumerate(policies):
        nn.utils.vector_to_parameters(torch.cat([w[place].flatten() for w in weights]).detach(), policy.parameters())
    return policies


@torch.no_grad()
def _step(optimizer: torch.optim.AdamW, weights: list[Tensor], rate_K: Tensor) -> None:
    """Each its own learning rate: what AdamW does to weights, their decay included, is proportional to it."""
    before = [weight.clone() for weight in weights]
    optimizer.step()
    for weight, old in zip(weights, before, strict=True):
        rates = rate_K.view(-1, *[1] * (weight.dim() - 1))
        weight.copy_(old + rates * (weight - old))


class _Rows:
    """The rows of every step, drawn as `alignment_training` draws them. Of all logs in one table."""

    def __init__(self, group: list[Training]) -> None:
        draws = []
        for one in group:
            random = torch.Generator().manual_seed(one.seed)
            draws.append(torch.stack([_drawn(one.votes, LOSSES[one.loss].units, random) for _ in range(STEPS)]))
        starts = [0]
        for one in group:
            starts.append(starts[-1] + len(one.votes))
        self._rows_SKB = torch.stack([d + start for d, start in zip(draws, starts, strict=False)], dim=1)
        self._prompt_ND, self._answer_N, self._label_N = (
            torch.cat([getattr(one.votes, name) for one in group]) for name in ("prompt_ND", "answer_N", "label_N")
        )
        self._reference_NA = torch.cat([one.world.reference_logps(one.votes.prompt_ND) for one in group])
        self._weights_N, self._scale_N = (
            torch.cat([torch.ones(len(one.votes)) if (x := getattr(one, name)) is None else x for one in group])
            for name in ("weights_N", "scale_N")
        )

    def of(self, step: int) -> list[Tensor]:
        """Prompt, answer, label, reference, weight and scale of (K, B) rows."""
        columns = (self._prompt_ND, self._answer_N, self._label_N, self._reference_NA, self._weights_N, self._scale_N)
        return [column[self._rows_SKB[step]] for column in columns]


def _network(weights: list[Tensor], prompt_KBD: Tensor) -> Tensor:
    """`Policy`'s, K of them."""
    in_KHD, bias_KH, out_KAH, bias_KA = weights
    hidden_KBH = torch.tanh(torch.baddbmm(bias_KH[:, None], prompt_KBD, in_KHD.transpose(1, 2)))
    return torch.baddbmm(bias_KA[:, None], hidden_KBH, out_KAH.transpose(1, 2))


def _middle(loss: str, shifts: list[RewardShift], ratio_KBA: Tensor, answer_KB: Tensor) -> Tensor:
    """(K, 1): BCO's delta, KTO's reference point (from the answers of other prompts), else 0."""
    if loss == "kto":
        ratio_KB = ratio_KBA.gather(2, answer_KB.roll(1, dims=1)[:, :, None])[:, :, 0]
        return torch.tensor([[kto_reference_point(total, ratio_KB.shape[1])] for total in ratio_KB.sum(1).tolist()])
    return torch.tensor([[shift.delta if LOSSES[loss].shifted else 0.0] for shift in shifts])


def _row_losses(one: Training) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """(reward_KB, label_KB, middle_K1) -> loss_KB, by the project's own losses."""
    noise = {} if one.how in TRIED or not LOSSES[one.loss].likelihood else {"label_noise": one.label_noise}

    def plain(reward_KB: Tensor, label_KB: Tensor, middle_K1: Tensor) -> Tensor:
        if one.loss == "dpo":
            losses_KP = dpo(reward_KB[:, 0::2], reward_KB[:, 1::2], **noise)
            return torch.stack([losses_KP, torch.zeros_like(losses_KP)], dim=2).flatten(1)
        middle = {"bco": {"delta": middle_K1}, "kto": {"beta": BETA, "z_ref": middle_K1}}.get(one.loss, {})
        losses_KB: Tensor = ROW_LOSSES[one.loss](reward_KB, label_KB, **middle, **noise)  # type: ignore[operator]
        return losses_KB

    return partial(_tried, plain, one.how, one.label_noise) if one.how in TRIED and one.label_noise else plain


def _tried(
    plain: Callable[[Tensor, Tensor, Tensor], Tensor], how: str, noise: float, reward_KB: Tensor, label_KB: Tensor,
    middle_K1: Tensor,
) -> Tensor:  # fmt: skip
    """`smoothing`: (1 - e) l(c) + e l(1 - c), as cDPO. `debiased`: ((1 - e) l(c) - e l(1 - c)) / (1 - 2 e), as
    robust DPO (arXiv 2403.00409).
    """
    right_KB, wrong_KB = plain(reward_KB, label_KB, middle_K1), plain(reward_KB, ~label_KB, middle_K1)
    if how == "smoothing":
        return (1 - noise) * right_KB + noise * wrong_KB
    return ((1 - noise) * right_KB - noise * wrong_KB) / (1 - 2 * noise)


def _shift_sums(reward_KB: Tensor, label_KB: Tensor) -> list[ShiftSums]:
    up_K, down_K = (torch.where(side_KB, reward_KB, 0).double().sum(1) for side_KB in (label_KB, ~label_KB))
    columns = torch.stack([up_K, label_KB.sum(1).double(), down_K, (~label_KB).sum(1).double()], dim=1)
    return [ShiftSums(*row) for row in columns.tolist()]
