"""LoRA adapters beside one model: read beside what runs, put in between steps, chosen by row in one forward.

The engine's own weights are the name None. peft's names for adapters may have no dots or slashes, so it gets others.
"""

from __future__ import annotations

import threading
from collections import Counter, OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import torch

from bco_ray.errors import ModelError
from bco_ray.models.loading import (
    CausalLM,
    attach_adapter,
    base_of,
    detach_adapter,
    fill_adapter,
    fingerprint,
    is_adapter,
    read_adapter,
)
from bco_ray.serving.engines.batching.network import Network
from bco_ray.serving.engines.batching.row import Row
from bco_ray.serving.engines.protocol import Adapter, EngineOverloadedError
from bco_ray.storage import files

_PLAIN = "__base__"
"""peft's word for a row without an adapter."""


@dataclass(frozen=True)
class AdapterFiles:
    """What was read of one adapter: peft's config, and the weights where the model is."""

    name: str
    config: Any
    weights: dict[str, torch.Tensor]


class Adapters:
    """At most `limit` adapters on the model that was loaded from `directory`; the idle one used longest ago makes room.

    `pin`, `unpin` and `read` may be called from any thread, all else by the one that runs the model.
    """

    def __init__(self, lm: CausalLM, directory: Path, limit: int) -> None:
        """Raises ModelError for an adapter of a kind that the plain forward does not apply."""
        self._peft = lm
        self._own = next(iter(getattr(lm, "peft_config", {})), _PLAIN)
        if self._own != _PLAIN and lm.peft_config[self._own].is_prompt_learning:
            raise ModelError(f"{directory}: an adapter made of prompt vectors cannot be served.")
        self.lm = lm.get_base_model() if self._own != _PLAIN else lm
        self._directory = directory
        self._limit = limit
        self._loaded: OrderedDict[str, str] = OrderedDict()  # name -> peft's name, least recently used first
        self._pins: Counter[str] = Counter()
        self._unwanted: set[str] = set()
        self._lock = threading.Lock()
        self._numbers = count()
        self._hooked: set[Any] = set()
        self._by_row: list[str] | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """Those that are loaded."""
        with self._lock:
            return tuple(self._loaded)

    def pin(self, name: str) -> bool:
        """Keep it from being evicted until `unpin`; whether it is loaded."""
        with self._lock:
            self._pins[name] += 1
            self._unwanted.discard(name)
            if name in self._loaded:
                self._loaded.move_to_end(name)
            return name in self._loaded

    def unpin(self, name: str) -> None:
        """One user less."""
        with self._lock:
            self._pins[name] -= 1
            if not self._pins[name]:
                del self._pins[name]

    def read(self, adapter: Adapter) -> AdapterFiles:
        """Its files, checked as far as they go without the model. Raises ModelError."""
        if not is_adapter(adapter.directory):
            raise ModelError(f"{adapter.directory}: no adapter (it has no adapter_config.json).")
        self._check_base(adapter.directory)
        config, weights = read_adapter(adapter.directory, dtype=self.lm.dtype, device=self.lm.device)
        return AdapterFiles(adapter.name, config, weights)

    def add(self, files: AdapterFiles, network: Network, busy: Iterable[str | None]) -> None:
        """Put it in and try it on one token. `busy`: names that rows use.

        Raises ModelError, or EngineOverloadedError if all that fit are in use; then nothing changes.
        """
        if files.name in self.names:
            return
        name = f"a{next(self._numbers)}"
        evicted = self._make_room(files.name, set(busy))
        try:
            self._peft = attach_adapter(self._peft, name, files.config)
            self._hook()
            fill_adapter(self._peft, name, files.weights)
            self._try(name, network)
        except Exception as error:  # noqa: BLE001  whatever peft makes of somebody's config
            detach_adapter(self._peft, name)
            self._hook()
            with self._lock:
                self._loaded = OrderedDict({**evicted, **self._loaded})
            raise ModelError(f"{files.name}: {error}") from None
        for its in evicted.values():
            detach_adapter(self._peft, its)
        with self._lock:
            self._loaded[files.name] = name

    def remove_later(self, name: str) -> None:
        """Have `sweep` remove it."""
        with self._lock:
            self._unwanted.add(name)

    def sweep(self, busy: Iterable[str | None]) -> None:
        """Remove what nobody wants and nobody uses."""
        if self._unwanted:
            with self._lock:
                idle = self._unwanted - set(busy) - set(self._pins)
                self._unwanted -= idle
                left = [self._loaded.pop(name) for name in idle if name in self._loaded]
            for its in left:
                detach_adapter(self._peft, its)

    @contextmanager
    def of(self, rows: Sequence[Row]) -> Iterator[None]:
        """In here the model applies each row's adapter to it."""
        with self._chosen([row.adapter for row in rows]):
            yield

    @contextmanager
    def _chosen(self, names: Sequence[str | None], extra: dict[str, str] | None = None) -> Iterator[None]:
        if self._hooked:
            known = {**self._loaded, **(extra or {})}
            self._by_row = [known[name] if name else self._own for name in names]
        try:
            yield
        finally:
            self._by_row = None

    def _hook(self) -> None:
        """Tell every adapted module the adapter of each row. peft's own way hooks anew in every forward, and leaves
        the hooks behind in one that fails. Modules stay adapted when their adapters have gone.
        """
        for module in self.lm.modules():
            if hasattr(module, "lora_A") and module not in self._hooked:
                self._hooked.add(module)
                module.register_forward_pre_hook(self._tell, with_kwargs=True)

    def _tell(self, _: Any, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]] | None:
        return None if self._by_row is None else (args, {**kwargs, "adapter_names": self._by_row})

    @torch.inference_mode()
    def _try(self, name: str, network: Network) -> None:
        """One token, beside one of the engine's own weights."""
        try:
            with self._chosen(["tried", None], {"tried": name}):
                logits_BV = network.logits([[0], [0]], network.started(2))
        except (RuntimeError, ValueError, TypeError, IndexError) as error:
            raise ModelError(f"the model does not run with it: {error}") from None
        if not bool(logits_BV.isfinite().all()):
            raise ModelError("the model's output with it is not finite")

    def _make_room(self, wanted: str, busy: set[str | None]) -> dict[str, str]:
        """The one to go, if one must: nobody can pin it any more. Raises EngineOverloadedError if all are in use."""
        with self._lock:
            if len(self._loaded) < self._limit:
                return {}
            idle = [name for name in self._loaded if name not in busy and name not in self._pins]
            if not idle:
                raise EngineOverloadedError(f"{wanted}: all {self._limit} adapters that fit are in use.")
            return {idle[0]: self._loaded.pop(idle[0])}

    def _check_base(self, directory: Path) -> None:
        mine, its = (files.path_of(base_of(one)).resolve() for one in (self._directory, directory))
        if mine == its:
            return
        if not its.is_dir() or not mine.is_dir() or fingerprint(its) != fingerprint(mine):
            raise ModelError(f"{directory}: the adapter stands on {its}, and this engine runs {mine}.")
