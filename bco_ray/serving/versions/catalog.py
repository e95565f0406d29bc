"""Which version answers a request: from the name a client says to a version, its tokenizer and its engine.

A lease holds the version from the choice until the last byte has left, so that nothing in use is ever taken away.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Protocol

from bco_ray.errors import ServingError
from bco_ray.serving.args import Served
from bco_ray.serving.engines.protocol import Adapter, Engine, Health, Load
from bco_ray.text import Tokenizer


class ModelNotFoundError(ServingError):
    """No version is served under this name."""


@dataclass(frozen=True)
class Target:
    """One version and what generates for it; `adapter` None: the engine's own weights. `canary_percent`: the share of
    the canary that chose it; None: none did.
    """

    served: Served
    tokenizer: Tokenizer
    engine: Engine
    adapter: Adapter | None = None
    canary_percent: float | None = None


class Catalog(Protocol):
    """What a gateway can serve right now. It may change between two calls, never under a lease."""

    def lease(self, name: str, user: str | None) -> AbstractContextManager[Target]:
        """The version behind `name` (`helper/3`, `helper@prod`, `helper`), kept until the block ends.

        The same user gets the same version while a canary runs. Raises ModelNotFoundError naming what there is.
        """

    def models(self) -> Sequence[tuple[str, Served]]:
        """Every name that `lease` takes and clients should see, with the version behind it."""

    def refused(self) -> dict[str, str]:
        """Versions that should be served but cannot, and why."""

    async def health(self) -> Health:
        """Ok only if every version that traffic may reach can generate."""

    async def load(self) -> Load:
        """All engines together."""


class FixedCatalog:
    """One version for good."""

    def __init__(self, target: Target) -> None:
        self._target = target

    @contextmanager
    def lease(self, name: str, user: str | None) -> Iterator[Target]:
        """See `Catalog.lease`."""
        if name not in self._target.served.names:
            raise not_found(name, self.models())
        yield self._target

    def models(self) -> Sequence[tuple[str, Served]]:
        """See `Catalog.models`."""
        served = self._target.served
        return [(name, served) for name in (served.model_id, *served.aliases)]

    def refused(self) -> dict[str, str]:
        """See `Catalog.refused`."""
        return {}

    async def health(self) -> Health:
        """See `Catalog.health`."""
        return await self._target.engine.health()

    async def load(self) -> Load:
        """See `Catalog.load`."""
        return await self._target.engine.load()


def not_found(name: str, known: Sequence[tuple[str, Served]]) -> ModelNotFoundError:
    """The error, with the names there are."""
    served = ", ".join(name for name, _ in known) or "none yet"
    return ModelNotFoundError(f"The model {name!r} does not exist here. Served: {served}.")
