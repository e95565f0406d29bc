"""The next token of one row. V: vocabulary."""

from __future__ import annotations

import torch
from torch import Tensor


def pick(logits_V: Tensor, *, temperature: float, top_p: float, top_k: int, generator: torch.Generator) -> int:
    """Sample after temperature (> 0), then top-k (0: off), then top-p, on the CPU so that a seed means the same
    everywhere. Raises RuntimeError for logits that are not finite.
    """
    scaled_V = logits_V.detach().float().cpu()
    scaled_V = (scaled_V - scaled_V.max()) / temperature
    if 0 < top_k < len(scaled_V):
        scaled_V = scaled_V.masked_fill(scaled_V < torch.topk(scaled_V, top_k).values[-1], -torch.inf)
    probs_V = torch.softmax(scaled_V, dim=-1)
    if top_p < 1:
        probs_V = _nucleus(probs_V, top_p)
    return int(torch.multinomial(probs_V, 1, generator=generator))


def seeded(seed: int | None) -> torch.Generator:
    """A row's own source of randomness; None seeds it from the system."""
    generator = torch.Generator()
    if seed is None:
        generator.seed()
    else:
        generator.manual_seed(seed % (1 << 63))
    return generator


def _nucleus(probs_V: Tensor, top_p: float) -> Tensor:
    """Zero all but the likeliest tokens that together reach `top_p`; at least one stays."""
    sorted_V, order_V = probs_V.sort(descending=True)
    drop_V = sorted_V.cumsum(-1) - sorted_V >= top_p
    drop_V[0] = False
    return torch.zeros_like(probs_V).scatter(0, order_V, sorted_V.masked_fill(drop_V, 0.0))
