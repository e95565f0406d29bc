"""A transformers causal LM as a function from new tokens and a KV cache to logits.

B: rows, T: new columns, S: columns in the cache, V: vocabulary.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import get_layer_types_and_kwargs

from bco_ray.errors import ModelError
from bco_ray.models.loading import CausalLM
from bco_ray.serving.engines.batching.kv_cache import KVCache, LayerShape

_FULL = {"full_attention", "dummy"}
_WINDOWED = {"sliding_attention", "chunked_attention"}
_WAY_OUT = "Serve it with the engine `vllm`, or run it elsewhere and name it as an `upstream`."


class Network:
    """`free_columns`: attention asks for nothing but a mask and each key's own position, so a row's tokens may have
    padding between them, and keys may come from another prompt that started with the same tokens.
    """

    def __init__(self, lm: CausalLM) -> None:
        """Raises ModelError for a model that keeps more of the past than keys and values of its tokens."""
        self._lm = lm
        self._accepted = set(inspect.signature(lm.forward).parameters)
        self.device = lm.device
        self.vocabulary = int(lm.get_input_embeddings().num_embeddings)
        kinds = self._layer_kinds()
        alibi = bool(getattr(lm.config, "alibi", False))
        self.free_columns = kinds <= _FULL and "position_ids" in self._accepted and not alibi
        self._takes_bias = self.free_columns and lm.config._attn_implementation in ("sdpa", "eager")
        self._shapes = self._probe()

    def cache(self, *, max_rows: int = 0, budget: int = 0) -> KVCache:
        """An empty one. Without a budget it takes the room that it needs and no more."""
        return KVCache(self._shapes, dtype=self._lm.dtype, device=self.device, max_rows=max_rows, budget=budget)

    def started(self, rows: int) -> KVCache:
        """A cache of empty rows."""
        cache = self.cache()
        cache.start(rows, 0, 1)
        return cache

    def logits(self, new_BT: Sequence[Sequence[int]], cache: KVCache, counts: Sequence[int] | None = None) -> Tensor:
        """Logits_BV after the last column. Of each row's new columns the last `counts` are tokens (None: all)."""
        new = len(new_BT[0])
        cache.open(new, counts)
        optional: dict[str, Any] = {"logits_to_keep": 1}
        if "position_ids" in self._accepted:
            real = counts or [new] * len(new_BT)
            starts = [length + count - new for length, count in zip(cache.lengths, real, strict=True)]
            optional["position_ids"] = self._tensor([[max(0, s + t) for t in range(new)] for s in starts])
        out = self._lm(
            input_ids=self._tensor(new_BT),
            attention_mask=self._mask(cache, new),
            past_key_values=cache,
            use_cache=True,
            **{name: value for name, value in optional.items() if name in self._accepted},
        )
        cache.close()
        return torch.as_tensor(out.logits[:, -1])

    def _mask(self, cache: KVCache, new: int) -> Tensor | None:
        if self._takes_bias and not cache.padded:
            return None
        return cache.bias() if self._takes_bias and new == 1 else cache.mask()

    def _tensor(self, values: Sequence[Sequence[int]]) -> Tensor:
        return torch.tensor(values, device=self.device)

    def _layer_kinds(self) -> set[str]:
        if "past_key_values" not in self._accepted:
            raise ModelError(f"{type(self._lm).__name__} keeps no keys and values. {_WAY_OUT}")
        kinds = set(get_layer_types_and_kwargs(self._lm.config.get_text_config(decoder=True))[0])
        if kinds - _FULL - _WINDOWED:
            names = ", ".join(sorted(kinds - _FULL - _WINDOWED))
            raise ModelError(f"{type(self._lm).__name__} has layers without plain attention ({names}). {_WAY_OUT}")
        return kinds

    @torch.inference_mode()
    def _probe(self) -> list[LayerShape]:
        """What each layer keeps of a token, found out with one."""
        cache = DynamicCache()
        try:
            self._lm(input_ids=torch.zeros(1, 1, dtype=torch.long, device=self.device), past_key_values=cache)
            return list(_shapes_of(cache))
        except (RuntimeError, ValueError, TypeError, AttributeError, IndexError) as error:
            raise ModelError(f"{type(self._lm).__name__} does not run: {error}. {_WAY_OUT}") from None


def _shapes_of(cache: Any) -> Iterator[LayerShape]:
    for layer in cache.layers:
        if layer.keys is None:
            yield LayerShape(0, 0, 0)
        elif layer.keys.shape[2] == layer.values.shape[2] == 1:
            yield LayerShape(layer.keys.shape[1], layer.keys.shape[3], layer.values.shape[3])
        else:
            raise ValueError("it keeps something else than a key and a value of each token")
