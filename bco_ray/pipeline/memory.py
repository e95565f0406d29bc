"""What a training worker will hold in memory, item by item, in bytes: an upper bound of its tensors.

The device's context, the libraries' workspaces and fragmentation come on top. W workers, N weights, T of them trained
(an adapter's, or all), D bytes per number computed with.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from bco_ray.models.policy import tokens_per_chunk
from bco_ray.models.sizes import ModelSize

FLOAT32 = 4
PACKED_BYTES = {"nf4": 0.53, "int8": 1.0}
"""Of a quantised weight, the block's scale in it (QLoRA, 2305.14314: 4 + 0.127 bits)."""

REDUCED_AT_ONCE = 500_000_000
GATHERED_AT_ONCE = 1_000_000_000
"""Numbers; DeepSpeed's defaults of `reduce_bucket_size` and `stage3_max_live_parameters`."""

SCORE_BYTES = 9
"""Of a softcapped attention score: in float32 twice (or once, and twice in 16 bits), and a mask."""

FLOAT32_COPIES = 8
"""Hidden states' worth of numbers that the norms of a layer keep, which compute in float32."""


@dataclass(frozen=True)
class Layout:
    """How training computes and shares its state out. `tokens` of the largest micro-batch, `row_tokens` of a row."""

    workers: int
    zero_stage: int
    offload: str
    number_bytes: int
    quantization: str
    device: str
    tokens: int
    row_tokens: int
    checkpointing: bool
    deepspeed: dict[str, Any]

    def share(self, from_stage: int) -> int:
        """Over how many workers a thing is cut that is from this ZeRO stage on."""
        return self.workers if self.zero_stage >= from_stage else 1


def memory_of(size: ModelSize, layout: Layout, live_reference: ModelSize | None = None) -> dict[str, int]:
    """Bytes on a worker's device by item, with their `total`; `host`: what offloading leaves in its host's memory.

    `live_reference`: of a frozen copy that is held beside the policy.
    """
    weights = _frozen_and_own(size, layout) / layout.share(3)
    moments = _optimizer(size.trained, layout)
    away = {"none": 0.0, "optimizer": moments, "parameters": moments + weights}[layout.offload]
    items = {
        "weights": 0.0 if layout.offload == "parameters" else weights,
        "gradients": _gradients(size.trained, layout),
        "optimizer": moments if layout.offload == "none" else 0.0,
        "reference": _frozen_and_own(live_reference, layout) / layout.share(3) if live_reference else 0.0,
        "activations": activations(size, layout),
        "logits": _logits(size, layout),
        "buffers": _buffers(size, layout),
    }
    rounded = {name: round(value) for name, value in items.items()}
    return {**rounded, "total": sum(rounded.values()), "host": round(away)}


def activations(size: ModelSize, layout: Layout) -> int:
    """What the forward of one micro-batch keeps for its backward.

    Per token and layer: twice all that goes into and comes out of its matrices (before and after what is done to it
    element by element) and FLOAT32_COPIES. Only softcapped attention keeps something quadratic. With activation
    checkpointing that is kept of one layer at a time, of the others what enters.
    """
    numbers = 2 * size.widths + FLOAT32_COPIES * size.hidden * size.layers
    kept = numbers * layout.number_bytes + SCORE_BYTES * size.scored_heads * layout.row_tokens
    if layout.checkpointing:
        kept = kept // size.layers + size.hidden * size.layers * layout.number_bytes
    ends = FLOAT32_COPIES * size.hidden * layout.number_bytes  # embedding, last norm, the states that predict something
    return layout.tokens * (kept + ends)


def _frozen_and_own(size: ModelSize, layout: Layout) -> float:
    packed = size.linear * PACKED_BYTES.get(layout.quantization, layout.number_bytes)
    return packed + (size.weights - size.linear + size.adapter) * layout.number_bytes


def _optimizer(trained: int, layout: Layout) -> float:
    """AdamW's two moments, and a float32 master where the weights are none (DeepSpeed always has one)."""
    has_master = layout.zero_stage > 0 or layout.number_bytes < FLOAT32
    return trained * FLOAT32 * (3 if has_master else 2) / layout.share(1)


def _gradients(trained: int, layout: Layout) -> float:
    """Sums in float32; under DeepSpeed a flat copy of a worker's own share for its update, and stage 1 keeps all."""
    if layout.zero_stage == 0:
        return trained * FLOAT32
    flat = FLOAT32 * trained / layout.workers
    sums = layout.number_bytes * trained if layout.zero_stage == 1 else flat
    return flat + sums


def _logits(size: ModelSize, layout: Layout) -> float:
    """One chunk on its way back: logits and their gradient in float32 and as computed with, and a trained head's."""
    rows = min(layout.tokens, tokens_per_chunk(size.vocabulary, layout.device))
    head = 0 if size.adapter else size.vocabulary * size.hidden * (FLOAT32 + layout.number_bytes)
    return rows * size.vocabulary * 2 * (FLOAT32 + layout.number_bytes) + head


def _buffers(size: ModelSize, layout: Layout) -> float:
    """What DeepSpeed adds gradients up in; on a GPU all of it is taken. Stage 3: parameters gathered for the moment."""
    if layout.zero_stage == 0:
        return 0.0
    zero = layout.deepspeed.get("zero_optimization", {})
    bucket = _number(zero.get("reduce_bucket_size"), REDUCED_AT_ONCE)
    gathered = min(size.weights, _number(zero.get("stage3_max_live_parameters"), GATHERED_AT_ONCE))
    reduced = bucket if layout.device == "cuda" else min(bucket, size.trained)
    return reduced * FLOAT32 + (gathered * layout.number_bytes if layout.zero_stage == 3 else 0)


def _number(asked: Any, default: int) -> float:
    """DeepSpeed's JSON may say `auto`."""
    return float(asked) if isinstance(asked, int | float) else default
