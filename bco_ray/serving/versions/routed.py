"""The gateway's catalog: the newest table it heard of, a tokenizer per version, an engine per home."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import reduce
from operator import add
from pathlib import Path

from bco_ray.serving.args import Served
from bco_ray.serving.engines.protocol import Engine, EngineDeadError, Health, Load
from bco_ray.serving.versions.catalog import Target
from bco_ray.serving.versions.routes import Table
from bco_ray.storage.local_copies import local_copy
from bco_ray.text import Tokenizer, load_tokenizer, tokenizer_digest

NOTHING = "no model can be served"


class RoutedCatalog:
    """See `Catalog`. All methods but `switch` run on the event loop."""

    def __init__(
        self, engine_of: Callable[[str], Engine], switched: Callable[[Table], None] = lambda table: None
    ) -> None:
        """`engine_of` a home; `switched` is called with every table once it counts."""
        self.table = Table()
        self.in_flight: Counter[str] = Counter()
        self._engine_of = engine_of
        self._switched = switched
        self._engines: dict[str, Engine] = {}
        self._tokenizers: dict[str, Tokenizer] = {}
        self._digests: dict[Path, str] = {}

    async def switch(self, table: Table) -> None:
        """Get ready for a table beside the traffic, then answer by it."""
        digests, tokenizers = await asyncio.to_thread(self._read, table)
        engines = {home: self._engines.get(home) for home in table.homes}
        for home in [home for home, engine in engines.items() if engine is None]:
            engines[home] = await asyncio.to_thread(self._engine_of, home)
        self.table, self._digests, self._tokenizers = table, digests, tokenizers
        self._engines = {home: engine for home, engine in engines.items() if engine}
        self._switched(table)

    @contextmanager
    def lease(self, name: str, user: str | None) -> Iterator[Target]:
        """See `Catalog.lease`."""
        if not self.table.routes:
            raise EngineDeadError(self._nothing())
        route, canary = self.table.pick(name, user), self.table.canary_of(name)
        tokenizer = self._tokenizers[self._digests[route.served.tokenizer_dir]]
        share = canary.percent if canary else None
        target = Target(route.served, tokenizer, self._engines[route.home], route.adapter, share)
        self.in_flight[route.home] += 1
        try:
            yield target
        finally:
            self.in_flight[route.home] -= 1

    def models(self) -> Sequence[tuple[str, Served]]:
        """See `Catalog.models`."""
        return self.table.models()

    def refused(self) -> dict[str, str]:
        """See `Catalog.refused`."""
        return self.table.refused

    async def health(self) -> Health:
        """See `Catalog.health`."""
        if not self.table.routes:
            return Health(False, self._nothing())
        found = await asyncio.gather(*(engine.health() for engine in self._engines.values()))
        return next((health for health in found if not health.ok), Health(True))

    async def load(self) -> Load:
        """See `Catalog.load`."""
        return reduce(add, await asyncio.gather(*(engine.load() for engine in self._engines.values())), Load(0, 0))

    def _read(self, table: Table) -> tuple[dict[Path, str], dict[str, Tokenizer]]:
        """Versions with the same tokenizer share one, however many they are."""
        directories = {route.served.tokenizer_dir for route in table.routes.values()}
        digests = {d: self._digests.get(d) or tokenizer_digest(local_copy(d, weights=False)) for d in directories}
        tokenizers: dict[str, Tokenizer] = {}
        for directory, digest in digests.items():
            known = tokenizers.get(digest) or self._tokenizers.get(digest)
            tokenizers[digest] = known or load_tokenizer(local_copy(directory, weights=False))
        return digests, tokenizers

    def _nothing(self) -> str:
        reasons = "; ".join(f"{reference}: {reason}" for reference, reason in self.table.refused.items())
        if self.table.pending or not reasons:
            return f"no model is ready yet{reasons and f'; {reasons}'}"
        return f"{NOTHING}: {reasons}"
