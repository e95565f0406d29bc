"""Attention that stays within each row of a Pack, as a function transformers can be told to use.

On a GPU in half precision: torch's variable-length FlashAttention. Elsewhere each row by itself, which costs the same
as computing it alone; the matrices around it still see all rows at once. Shapes: H heads, N tokens of all rows,
L tokens of one row, D width of a head.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bco_ray.errors import ModelError

PACKED = "bco_packed"
"""The name under which transformers knows it."""

_NOT_KNOWN = ("s_aux", "head_mask", "position_bias")
"""What a model may pass that would change the result."""


def use_packed_attention(lm: Any) -> str:
    """Make a transformers model attend within rows; returns the implementation it had.

    Its forward then takes `row_lengths` and `row_bounds` (of a Pack). Raises ModelError for an architecture whose
    attention cannot be chosen.
    """
    from transformers import AttentionInterface

    AttentionInterface.register(PACKED, packed_attention)
    had: str = lm.config._attn_implementation
    lm.set_attn_implementation(PACKED)
    if lm.config._attn_implementation != PACKED:
        raise ModelError(f"{type(lm).__name__}: its attention cannot be exchanged; it cannot be trained yet.")
    return had


def packed_attention(
    module: nn.Module,
    query_1HND: Tensor,
    key_1HND: Tensor,
    value_1HND: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    row_lengths: tuple[int, ...] | None = None,
    row_bounds: Tensor | None = None,
    **extras: Any,
) -> tuple[Tensor, None]:
    """Causal attention within rows -> (1, N, H, D). Without `row_lengths` each batch entry is one row.

    Dropout is never applied: policy and reference must be the same function. Raises ModelError for what is not known.
    """
    if unknown := [name for name in _NOT_KNOWN if extras.get(name) is not None]:
        raise ModelError(f"{type(module).__name__}: attention with {', '.join(unknown)} cannot be trained yet.")
    heads = query_1HND.shape[1] // key_1HND.shape[1]
    if row_lengths is not None and row_bounds is not None and _flash_fits(query_1HND, softcap):
        out_NHD = _flash(query_1HND, key_1HND, value_1HND, row_bounds, max(row_lengths), scaling, sliding_window)
        return out_NHD[None], None
    if heads > 1:
        key_1HND, value_1HND = (x.repeat_interleave(heads, dim=1) for x in (key_1HND, value_1HND))
    lengths = list(row_lengths or (query_1HND.shape[2],))
    rows = zip(*(torch.split(x, lengths, dim=2) for x in (query_1HND, key_1HND, value_1HND)), strict=True)
    attended = [_one_row(q, k, v, scaling, sliding_window, softcap) for q, k, v in rows]
    return torch.cat(attended, dim=2).transpose(1, 2).contiguous(), None


def _flash_fits(query_1HND: Tensor, softcap: float | None) -> bool:
    half = query_1HND.dtype in (torch.bfloat16, torch.float16)
    return query_1HND.is_cuda and half and softcap is None and query_1HND.shape[-1] <= 256


def _flash(
    query_1HND: Tensor,
    key_1HND: Tensor,
    value_1HND: Tensor,
    bounds: Tensor,
    longest: int,
    scaling: float | None,
    sliding_window: int | None,
) -> Tensor:
    from torch.nn.attention.varlen import varlen_attn

    query_NHD, key_NHD, value_NHD = (x[0].transpose(0, 1).contiguous() for x in (query_1HND, key_1HND, value_1HND))
    out = varlen_attn(
        query_NHD,
        key_NHD,
        value_NHD,
        bounds,
        bounds,
        longest,
        longest,
        scale=scaling,
        window_size=(sliding_window - 1 if sliding_window else -1, 0),
        enable_gqa=query_NHD.shape[1] != key_NHD.shape[1],
    )
    assert isinstance(out, Tensor)  # a tuple only if asked for more
    return out


def _one_row(
    query: Tensor, key: Tensor, value: Tensor, scaling: float | None, sliding_window: int | None, softcap: float | None
) -> Tensor:
    length = query.shape[2]
    windowed = sliding_window is not None and length > sliding_window
    if softcap is None and not windowed:
        return F.scaled_dot_product_attention(query, key, value, is_causal=True, scale=scaling)
    mask_LL = _mask(length, sliding_window if windowed else None, query.device)
    if softcap is None:
        return F.scaled_dot_product_attention(query, key, value, attn_mask=mask_LL, scale=scaling)
    scores = query @ key.transpose(2, 3) * (query.shape[-1] ** -0.5 if scaling is None else scaling)
    scores = torch.tanh(scores / softcap) * softcap
    shares = torch.softmax(scores.masked_fill(~mask_LL, float("-inf")), dim=-1, dtype=torch.float32)
    return shares.to(query.dtype) @ value


def _mask(length: int, window: int | None, device: torch.device) -> Tensor:
    """True where token i may look at token j: not ahead, and at most `window` - 1 back."""
    at = torch.arange(length, device=device)
    distance_LL = at[:, None] - at[None]
    allowed = distance_LL >= 0
    return allowed if window is None else allowed & (distance_LL < window)
