"""The reference's log-probabilities: a column made beforehand, the model without its adapter, or a frozen copy.

Shapes: B rows of a micro-batch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from bco_ray.models.packing import Pack
from bco_ray.training.batches import MicroBatch
from bco_ray.training.engine import Engine

Reference = Callable[[MicroBatch], Tensor]
"""log pi_ref per row (B,), float32, without gradient; for a batch on the engine's device."""


def column(batch: MicroBatch) -> Tensor:
    """What the reference pass wrote beside the tokens."""
    return batch.reference_logps_B


def without_adapter(engine: Engine, lm: Any) -> Reference:
    """The base under the adapter, by the engine's own forward: exactly the policy while the adapter is still zero."""

    @torch.no_grad()
    def score(batch: MicroBatch) -> Tensor:
        with lm.disable_adapter():
            return engine.forward(batch.pack)

    return score


def frozen(forward: Callable[[Pack], Tensor]) -> Reference:
    """A copy of the starting weights that is kept for comparison."""

    @torch.no_grad()
    def score(batch: MicroBatch) -> Tensor:
        return forward(batch.pack)

    return score
