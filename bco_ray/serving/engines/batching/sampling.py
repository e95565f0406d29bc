"""The next tokens of rows that step together, each row by its own settings and its own randomness.

B: rows, K: candidates, V: vocabulary.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from bco_ray.serving.engines.protocol import TokenLogprob

_NUCLEUS_CANDIDATES = 256
"""The likeliest tokens a nucleus is first looked for in: sorting a whole vocabulary takes longer than the model."""


@dataclass(frozen=True)
class Draw:
    """How one row samples: temperature > 0, then top-k (0: off), then top-p; `uniform` in [0, 1) decides."""

    temperature: float
    top_p: float
    top_k: int
    uniform: float

    @property
    def plain(self) -> bool:
        """Whether every token may come."""
        return self.top_p >= 1 and self.top_k == 0


def seeded(seed: int | None) -> random.Random:
    """A row's own source of randomness; None seeds it from the system."""
    return random.Random(seed)


def sample(logits_BV: Tensor, draws: Sequence[Draw]) -> list[int]:
    """A token per row, the same one for the same logits and `uniform`, whatever the other rows are."""
    tokens = [0] * len(draws)
    for plain, pick in ((True, _pick_any), (False, _pick_likely)):
        rows = [b for b, draw in enumerate(draws) if draw.plain is plain]
        if rows:
            chosen = [draws[b] for b in rows]
            scaled_BV = _scaled(logits_BV if len(rows) == len(draws) else logits_BV[rows], chosen)
            for b, token in zip(rows, pick(scaled_BV, chosen), strict=True):
                tokens[b] = token
    return tokens


def logprobs(logits_BV: Tensor, tokens: Sequence[int], top: Sequence[int]) -> list[TokenLogprob]:
    """Of each row's token and of its `top` likeliest ones, by the model alone."""
    logprobs_BV = torch.log_softmax(logits_BV.float(), -1)
    chosen_B = logprobs_BV.gather(1, torch.tensor(tokens, device=logits_BV.device)[:, None])[:, 0].tolist()
    best_BK, ids_BK = logprobs_BV.topk(min(max(top), logprobs_BV.shape[1]))
    rows = zip(tokens, chosen_B, top, ids_BK.tolist(), best_BK.tolist(), strict=True)
    return [TokenLogprob(i, own, list(zip(ids, best, strict=True))[:k]) for i, own, k, ids, best in rows]


def _scaled(logits_BV: Tensor, draws: Sequence[Draw]) -> Tensor:
    """Over the temperature, the likeliest at 0."""
    logits_BV = logits_BV.float()
    temperatures_B = torch.tensor([[draw.temperature] for draw in draws], device=logits_BV.device)
    return (logits_BV - logits_BV.amax(-1, keepdim=True)) / temperatures_B.clamp(min=1e-30)


def _pick_any(scaled_BV: Tensor, draws: Sequence[Draw]) -> list[int]:
    return _pick(torch.softmax(scaled_BV, -1), draws).tolist()


def _pick_likely(scaled_BV: Tensor, draws: Sequence[Draw]) -> list[int]:
    """The likeliest tokens come first, so that top-k and top-p are ranges of them."""
    vocabulary = scaled_BV.shape[1]
    ks = [min(draw.top_k or vocabulary, vocabulary) for draw in draws]
    candidates = min(max(ks), max(_NUCLEUS_CANDIDATES, *(draw.top_k for draw in draws)))
    probs_BK, ids_BK = _likeliest(scaled_BV, ks, candidates)
    if candidates < max(ks) and not _hold_the_nucleus(probs_BK, draws):
        probs_BK, ids_BK = _likeliest(scaled_BV, ks, max(ks))
    top_ps_B = torch.tensor([[draw.top_p if draw.top_p < 1 else 2.0] for draw in draws], device=probs_BK.device)
    dropped_BK = probs_BK.cumsum(-1) - probs_BK >= top_ps_B
    dropped_BK[:, 0] = False
    return ids_BK.gather(1, _pick(probs_BK.masked_fill(dropped_BK, 0), draws)[:, None])[:, 0].tolist()


def _likeliest(scaled_BV: Tensor, ks: Sequence[int], candidates: int) -> tuple[Tensor, Tensor]:
    """Probabilities (among the row's k likeliest) and ids of the first candidates, best first."""
    values_BK, ids_BK = scaled_BV.topk(candidates)
    ranks_K = torch.arange(candidates, device=scaled_BV.device)
    values_BK = values_BK.masked_fill(ranks_K >= torch.tensor(ks, device=scaled_BV.device)[:, None], -torch.inf)
    every = torch.tensor([[k == scaled_BV.shape[1]] for k in ks], device=scaled_BV.device)
    totals_B = torch.where(every, scaled_BV.logsumexp(-1, keepdim=True), values_BK.logsumexp(-1, keepdim=True))
    return (values_BK - totals_B).exp(), ids_BK


def _hold_the_nucleus(probs_BK: Tensor, draws: Sequence[Draw]) -> bool:
    """Whether these are all the tokens that could be drawn. A row with top-k has all of its own here."""
    sums = probs_BK.sum(-1).tolist()
    return all(draw.top_k or total >= draw.top_p for total, draw in zip(sums, draws, strict=True))


def _pick(weights_BK: Tensor, draws: Sequence[Draw]) -> Tensor:
    """Where a row's `uniform` falls among its weights, laid end to end; never on one of 0."""
    sums_BK = weights_BK.cumsum(-1)
    uniform_B = torch.tensor([[draw.uniform] for draw in draws], device=weights_BK.device)
    last_B = torch.searchsorted(sums_BK, sums_BK[:, -1:].contiguous())
    return torch.minimum(torch.searchsorted(sums_BK, uniform_B * sums_BK[:, -1:], right=True), last_B)[:, 0]
