"""How large a model is: what memory and work follow from, without any of its weights."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from bco_ray.models.loading import CausalLM, skeleton


@dataclass(frozen=True)
class ModelSize:
    """`weights` of the base, tied ones once; `linear`: those of them that quantization packs; `adapter`'s own.

    `widths`: what goes into and comes out of all matrices but the head's, in numbers per token. `scored_heads`:
    attention heads of all layers that keep their scores, as softcapped ones do (models.attention).
    """

    weights: int
    linear: int
    adapter: int
    layers: int
    hidden: int
    vocabulary: int
    widths: int
    scored_heads: int

    @classmethod
    def of(cls, directory: str | Path, adapter: dict[str, Any] | None = None) -> ModelSize:
        """Of the model in a directory, or an adapter's base, with a new adapter on it. Raises ModelError."""
        lm = skeleton(directory, adapter)
        config = lm.config.get_text_config()
        numbers = {name: p.numel() for name, p in lm.named_parameters()}
        shapes = _matrices(lm)
        softcapped = getattr(config, "attn_logit_softcapping", None) is not None
        own = sum(count for name, count in numbers.items() if "lora_" in name)
        return cls(
            weights=sum(numbers.values()) - own,
            linear=sum(a * b for name, (a, b) in shapes.items() if "lora_" not in name),
            adapter=own,
            layers=config.num_hidden_layers,
            hidden=config.hidden_size,
            vocabulary=config.vocab_size,
            widths=sum(map(sum, shapes.values())),
            scored_heads=config.num_hidden_layers * config.num_attention_heads if softcapped else 0,
        )

    @property
    def trained(self) -> int:
        """The adapter's weights, or all."""
        return self.adapter or self.weights


def _matrices(lm: CausalLM) -> dict[str, tuple[int, int]]:
    """Shapes of the layers' matrices by name, LoRA's included (GPT-2's are no nn.Linear)."""
    head = lm.get_output_embeddings()
    layers = ((name, m) for name, m in lm.named_modules() if m is not head and not isinstance(m, nn.Embedding))
    weights = {name: getattr(layer, "weight", None) for name, layer in layers}
    return {
        name: (weight.shape[0], weight.shape[1])
        for name, weight in weights.items()
        if isinstance(weight, nn.Parameter) and weight.ndim == 2
    }
