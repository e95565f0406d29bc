"""Which version answers to which name: one immutable table, replaced as a whole. No Ray, no I/O."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field

from bco_ray.serving.args import Served
from bco_ray.serving.engines.protocol import Adapter
from bco_ray.serving.versions.catalog import not_found


@dataclass(frozen=True)
class Route:
    """Where one version lives: the engine `home`, and the adapter on it (None: the engine's own weights)."""

    served: Served
    home: str
    adapter: Adapter | None = None


@dataclass(frozen=True)
class Canary:
    """`percent` of a name's traffic goes to the version `reference`."""

    reference: str
    percent: float

    def takes(self, user: str | None) -> bool:
        """The same user always falls on the same side, and stays with the canary while its share grows. Who are the
        first is another draw for each version.
        """
        who = user if user is not None else secrets.token_hex(8)
        drawn = hashlib.sha256(f"{self.reference}\n{who}".encode()).digest()
        place = int.from_bytes(drawn[:8], "big") / 2**64
        return 100 * place < self.percent


@dataclass(frozen=True)
class Table:
    """`routes` by exact reference (`helper/3`), `names` (`helper`, `helper@prod`) to references, `canaries` by bare
    name.

    `refused`: versions that should be served but cannot, with the reason. `pending`: there are others that may become
    ready yet. `generation` grows with every table.
    """

    generation: int = 0
    routes: dict[str, Route] = field(default_factory=dict)
    names: dict[str, str] = field(default_factory=dict)
    canaries: dict[str, Canary] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)
    pending: bool = False

    def pick(self, name: str, user: str | None) -> Route:
        """The version that answers this request. Raises ModelNotFoundError naming what there is."""
        canary = self.canary_of(name)
        if canary and canary.takes(user):
            return self.routes[canary.reference]
        route = self.routes.get(self.names.get(name, name))
        if route is None:
            raise not_found(name, self.models())
        return route

    def canary_of(self, name: str) -> Canary | None:
        """Which decides who answers to this name; None if it says that itself, or the canary's version is not there."""
        canary = self.canaries.get(name)
        return canary if canary and canary.reference in self.routes else None

    def models(self) -> Sequence[tuple[str, Served]]:
        """Exact references first, then their aliases; a bare name is taken too, but is no id of its own."""
        exact = [(reference, route.served) for reference, route in self.routes.items()]
        said = [(name, self.routes[reference].served) for name, reference in self.names.items() if "@" in name]
        return exact + said

    @property
    def homes(self) -> frozenset[str]:
        """Every engine that traffic may reach."""
        return frozenset(route.home for route in self.routes.values())
