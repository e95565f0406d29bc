"""The losses BCO is compared with, per row or per pair, on the same rewards; class gains live in `window_loss`.

Pass an unpaired one to `unpaired_loss(row_losses=...)`. Shapes: B rows, P pairs. Rewards r = beta * log-ratio, nats.
"""

from __future__ import annotations

import torch
from torch import Tensor

from bco_ray.objective.loss import bco_row_losses, label_losses


def kto(rewards_B: Tensor, labels_B: Tensor, *, beta: float, z_ref: float | Tensor) -> Tensor:
    """1 - sigmoid(r - beta z) for label 1, 1 - sigmoid(beta z - r) for label 0 (arXiv 2402.01306, lambdas 1).

    `z_ref` in units of log-ratio, from `kto_reference_point`; a constant.
    """
    margins_B = rewards_B - beta * z_ref
    return torch.sigmoid(torch.where(labels_B == 1, -margins_B, margins_B))


def kto_reference_point(logratio_sum: float, count: float) -> float:
    """KTO's z: the mean log-ratio of mismatched completions (sums over the whole window), never below 0; 0 of none."""
    return max(0.0, logratio_sum / count) if count > 0 else 0.0


def apo_zero_unpaired(rewards_B: Tensor, labels_B: Tensor) -> Tensor:
    """1 - sigmoid(r) for label 1, sigmoid(r) for label 0 (arXiv 2408.06266)."""
    return torch.sigmoid(torch.where(labels_B == 1, -rewards_B, rewards_B))


def bce(rewards_B: Tensor, labels_B: Tensor, *, label_noise: float = 0.0) -> Tensor:
    """BCO with the shift held at 0: the paper's ablation."""
    return bco_row_losses(rewards_B, labels_B, delta=0.0, label_noise=label_noise)


def dpo(chosen_rewards_P: Tensor, rejected_rewards_P: Tensor, *, label_noise: float = 0.0) -> Tensor:
    """-log sigmoid(r_w - r_l) of pairs (arXiv 2305.18290); `label_noise`: share of pairs the wrong way round."""
    return label_losses(chosen_rewards_P - rejected_rewards_P, label_noise)


def bco_pair(chosen_rewards_P: Tensor, rejected_rewards_P: Tensor, *, delta: float | Tensor) -> Tensor:
    """Both rows of a pair through BCO's own row loss, added: above `dpo` for every delta (theorems 1 and 3)."""
    ones_P = torch.ones_like(chosen_rewards_P, dtype=torch.bool)
    chosen_P = bco_row_losses(chosen_rewards_P, ones_P, delta=delta)
    return chosen_P + bco_row_losses(rejected_rewards_P, ~ones_P, delta=delta)
