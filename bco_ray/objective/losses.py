"""Every loss behind one switch: which rows it is made of, and what it makes of a micro-batch of them.

Shapes: B rows, P pairs. All of them come back as `LossSums` and are finished by `window_loss`, so micro-batches,
workers and metrics are the same whatever is trained.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from bco_ray.objective.baselines import apo_zero_unpaired, bce, dpo, kto
from bco_ray.objective.loss import LossSums, RowLosses, bco_row_losses, implicit_rewards, unpaired_loss

Units = Literal["rows", "chosen", "pairs"]
"""What a window is made of: votes of both kinds, thumbs-up votes alone, or an up and a down on the same prompt."""


@dataclass(frozen=True)
class Loss:
    """What the loop has to know of a loss. `shifted`: it uses the reward shift; else delta is 0.

    `mismatched`: it needs the log-ratio of completions that belong to other prompts (KTO's reference point).
    `gain`: of each class where the spec says `auto`; halves start at log 2, ones are the papers' sum over a pair.
    `likelihood`: of labels, so that it can presume some of them wrong (`label_noise`).
    """

    units: Units = "rows"
    shifted: bool = False
    mismatched: bool = False
    gain: float = 0.5
    sft_weight: float = 0.0
    likelihood: bool = False

    @property
    def ups_suffice(self) -> bool:
        """Whether thumbs-up votes alone can be trained on."""
        return self.units == "chosen"


LOSSES: dict[str, Loss] = {
    "bco": Loss(shifted=True, likelihood=True),
    "bce": Loss(likelihood=True),
    "kto": Loss(mismatched=True),
    "apo_zero_unpaired": Loss(),
    "sft": Loss(units="chosen", sft_weight=1.0),
    "dpo": Loss(units="pairs", gain=1.0, likelihood=True),
    "bco_pair": Loss(units="pairs", shifted=True, gain=1.0, likelihood=True),
}
"""arXiv 2404.04656 (bco, its ablation bce, bco_pair), 2402.01306 (kto), 2408.06266 (apo_zero_unpaired), 2305.18290
(dpo); sft is -log p of thumbs-up completions, mean over tokens."""


def loss_sums(
    name: str,
    policy_logps_B: Tensor,
    reference_logps_B: Tensor,
    labels_B: Tensor,
    *,
    beta: float,
    delta: float | Tensor = 0.0,
    z_ref: float | Tensor = 0.0,
    label_noise: float = 0.0,
    weights_B: Tensor | None = None,
    valid_B: Tensor | None = None,
) -> LossSums:
    """The sums of a micro-batch under the loss `name`. For pairs the rows alternate: chosen, its rejected, ...

    `delta` is used by shifted losses, `z_ref` (in units of log-ratio) by KTO; the loss of a pair under DPO counts as
    its chosen row's. `label_noise`: the share of labels (of DPO's pairs) that is presumed wrong, see `label_losses`.
    Raises ValueError on unequal shapes, and on noise that the loss cannot presume.
    """
    _refuse_noise(name, label_noise)
    row_losses = _row_losses(name, beta, delta, z_ref, label_noise)
    sides: float | Tensor = delta if LOSSES[name].shifted else 0.0
    if name == "kto":
        sides = beta * z_ref
    elif name == "dpo":
        sides = _between(implicit_rewards(policy_logps_B.detach(), reference_logps_B, beta=beta))
    return unpaired_loss(
        policy_logps_B,
        reference_logps_B,
        labels_B,
        row_losses=row_losses,
        beta=beta,
        delta=sides,
        weights_B=weights_B,
        valid_B=valid_B,
    )


def _refuse_noise(name: str, label_noise: float) -> None:
    if not 0 <= label_noise < 0.5:
        raise ValueError(f"label_noise must be 0 or more and below 0.5, got {label_noise}")
    if label_noise and not LOSSES[name].likelihood:
        raise ValueError(f"{name} is no likelihood of labels: it takes no label_noise")


def _row_losses(name: str, beta: float, delta: float | Tensor, z_ref: float | Tensor, label_noise: float) -> RowLosses:
    known: dict[str, RowLosses] = {
        "bco": partial(bco_row_losses, delta=delta, label_noise=label_noise),
        "bco_pair": partial(bco_row_losses, delta=delta, label_noise=label_noise),
        "bce": partial(bce, label_noise=label_noise),
        "kto": partial(kto, beta=beta, z_ref=z_ref),
        "apo_zero_unpaired": apo_zero_unpaired,
        "sft": _nothing,
        "dpo": partial(_dpo_rows, label_noise=label_noise),
    }
    return known[name]


def _nothing(rewards_B: Tensor, labels_B: Tensor) -> Tensor:
    """All of SFT is in `sft_loss_sum`."""
    return torch.zeros_like(rewards_B)


def _dpo_rows(rewards_B: Tensor, labels_B: Tensor, *, label_noise: float) -> Tensor:
    """A pair's loss in its chosen row's place."""
    losses_P = dpo(rewards_B[0::2], rewards_B[1::2], label_noise=label_noise)
    return torch.stack([losses_P, torch.zeros_like(losses_P)], dim=1).flatten()


def _between(rewards_B: Tensor) -> Tensor:
    """The middle of each pair, for both its rows: above it a row has won."""
    return rewards_B.view(-1, 2).mean(1).repeat_interleave(2)
