"""Log-probability of completions, in float32 whatever the model computes in (float64 stays float64).

Shapes: B rows, T positions, V vocabulary, D hidden width, N scored tokens of all rows, C tokens of one chunk.
Logits at position t score the token at t + 1, so the mask that counts is that of token t + 1. The reference pass and
the trainer both come through here; otherwise the reward at step 0 would not be 0.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable


def completion_logps(logits_BTV: Tensor, input_ids_BT: Tensor, completion_mask_BT: Tensor) -> Tensor:
    """Sum of log p(token) over each row's completion tokens -> logps_B. The plain path: all logits exist at once.

    Nothing at other positions matters, not even NaN. Token 0 has no prediction and never counts.
    """
    logits_NV, targets_N, row_of_token_N = scored_tokens(logits_BTV, input_ids_BT, completion_mask_BT)
    return sum_by_row(token_logps(logits_NV, targets_N), row_of_token_N, len(input_ids_BT))


def scored_tokens(
    states_BTX: Tensor, input_ids_BT: Tensor, completion_mask_BT: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """What predicts each completion token, the token and its row: (states_NX, targets_N, row_of_token_N).

    `states` are logits or hidden states. Rows in order, positions in order. Waits for the device once (N).
    """
    row_of_token_N, position_N = completion_mask_BT[:, 1:].bool().nonzero(as_tuple=True)
    return states_BTX[row_of_token_N, position_N], input_ids_BT[row_of_token_N, position_N + 1], row_of_token_N


def token_logps(logits_NV: Tensor, targets_N: Tensor) -> Tensor:
    """log softmax(logits)[target] -> (N,)."""
    return -F.cross_entropy(_at_least_float32(logits_NV), targets_N.long(), reduction="none")


def sum_by_row(token_logps_N: Tensor, row_of_token_N: Tensor, batch_size: int) -> Tensor:
    """Token log-probabilities added per row -> logps_B, accumulated in float64, in the same order every time."""
    zeros_B = torch.zeros(batch_size, dtype=torch.float64, device=token_logps_N.device)
    values_N = token_logps_N.double()
    if zeros_B.is_cuda:  # index_add would use atomics there; an accumulating index_put sorts first
        sums_B = zeros_B.index_put((row_of_token_N,), values_N, accumulate=True)
    else:
        sums_B = zeros_B.index_add(0, row_of_token_N, values_N)
    return sums_B.to(torch.promote_types(token_logps_N.dtype, torch.float32))


def chunked_logps(
    hidden_ND: Tensor,
    head_weight_VD: Tensor,
    targets_N: Tensor,
    *,
    chunk_size: int,
    head_bias_V: Tensor | None = None,
    logit_scale: float = 1.0,
    softcap: float | None = None,
) -> Tensor:
    """Token log-probabilities (N,) straight from hidden states, `chunk_size` tokens at a time, both ways.

    Logits = hidden @ weight.T + bias in hidden's dtype (autocast is ignored, a weight of another dtype is cast), then
    in float32: times `logit_scale`, then softcap * tanh(logits / softcap). No logits are kept: backward makes them
    again, so memory is chunk_size x V instead of N x V. Raises ValueError on a chunk_size below 1.
    """
    if chunk_size < 1:
        raise ValueError(f"chunk_size must be at least 1, got {chunk_size}")
    head = _Head(chunk_size, logit_scale, softcap)
    weight_VD = head_weight_VD.to(hidden_ND.dtype)
    bias_V = None if head_bias_V is None else head_bias_V.to(hidden_ND.dtype)
    logps_N = _ChunkedLogps.apply(hidden_ND, weight_VD, bias_V, targets_N.long(), head)  # type: ignore[no-untyped-call]
    return cast(Tensor, logps_N)


@dataclass(frozen=True)
class _Head:
    """How hidden states become logits, and back: everything but the tensors."""

    chunk_size: int
    logit_scale: float
    softcap: float | None

    def chunks(self, tokens: int) -> list[slice]:
        """As few as the size allows, as even as they can be: a short last one would take another matrix kernel."""
        count = -(-tokens // self.chunk_size)
        bounds = [tokens * i // count for i in range(count + 1)] if count else [0]
        return [slice(start, end) for start, end in itertools.pairwise(bounds)]

    def logits(self, hidden_CD: Tensor, weight_VD: Tensor, bias_V: Tensor | None) -> Tensor:
        with torch.autocast(hidden_CD.device.type, enabled=False):
            logits_CV = _at_least_float32(F.linear(hidden_CD, weight_VD, bias_V))
        if self.logit_scale != 1.0:
            logits_CV.mul_(self.logit_scale)
        if self.softcap is not None:
            logits_CV.div_(self.softcap).tanh_().mul_(self.softcap)
        return logits_CV

    def through_scale_and_cap(self, grad_CV: Tensor, logits_CV: Tensor) -> Tensor:
        """Gradient wrt the finished logits -> gradient wrt hidden @ weight.T. Overwrites both arguments."""
        if self.softcap is not None:
            grad_CV.mul_(logits_CV.div_(self.softcap).square_().neg_().add_(1.0))
        return grad_CV.mul_(self.logit_scale) if self.logit_scale != 1.0 else grad_CV


class _ChunkedLogps(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden_ND: Tensor, weight_VD: Tensor, bias_V: Tensor | None, targets_N: Tensor, head: _Head
    ) -> Tensor:
        logps_N = torch.empty(len(hidden_ND), dtype=_wide(hidden_ND.dtype), device=hidden_ND.device)
        log_normaliser_N = torch.empty_like(logps_N)
        for chunk in head.chunks(len(hidden_ND)):
            logits_CV = head.logits(hidden_ND[chunk], weight_VD, bias_V)
            log_normaliser_N[chunk] = torch.logsumexp(logits_CV, 1)
            logps_N[chunk] = logits_CV.gather(1, targets_N[chunk, None])[:, 0] - log_normaliser_N[chunk]
        ctx.save_for_backward(hidden_ND, weight_VD, bias_V, targets_N, log_normaliser_N)
        ctx.head = head
        return logps_N

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_N: Tensor) -> tuple[Tensor | None, ...]:
        hidden_ND, weight_VD, bias_V, targets_N, log_normaliser_N = ctx.saved_tensors
        hidden_grad, weight_grad, bias_grad = _empty_gradients(ctx.needs_input_grad, hidden_ND, weight_VD)
        for chunk in ctx.head.chunks(len(hidden_ND)):
            hidden_CD = hidden_ND[chunk]
            logits_CV = ctx.head.logits(hidden_CD, weight_VD, bias_V)
            grad_CV = _grad_of_logits(logits_CV, targets_N[chunk], log_normaliser_N[chunk], grad_N[chunk])
            grad_CV = ctx.head.through_scale_and_cap(grad_CV, logits_CV)
            if bias_grad is not None:
                bias_grad += grad_CV.sum(0)
            grad_CV = grad_CV.to(hidden_CD.dtype)
            if hidden_grad is not None:
                hidden_grad[chunk] = grad_CV @ weight_VD
            if weight_grad is not None:
                weight_grad += grad_CV.T @ hidden_CD
        narrow = [None if grad is None else grad.to(hidden_ND.dtype) for grad in (weight_grad, bias_grad)]
        return hidden_grad, *narrow, None, None


def _empty_gradients(needs: tuple[bool, ...], hidden_ND: Tensor, weight_VD: Tensor) -> list[Tensor | None]:
    """Room for the gradients asked for; those summed over chunks are float32, so that no chunk is rounded away."""
    dtype = _wide(weight_VD.dtype)
    return [
        torch.empty_like(hidden_ND) if needs[0] else None,
        torch.zeros_like(weight_VD, dtype=dtype) if needs[1] else None,
        torch.zeros(len(weight_VD), dtype=dtype, device=weight_VD.device) if needs[2] else None,
    ]


def _grad_of_logits(logits_CV: Tensor, targets_C: Tensor, log_normaliser_C: Tensor, grad_C: Tensor) -> Tensor:
    """grad * (onehot(target) - softmax(logits))."""
    grad_CV = (logits_CV - log_normaliser_C[:, None]).exp_().mul_(-grad_C[:, None])
    return grad_CV.scatter_add_(1, targets_C[:, None], grad_C[:, None])


def _at_least_float32(x: Tensor) -> Tensor:
    return x.to(_wide(x.dtype))


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)
