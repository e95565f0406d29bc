"""From what should be served to what is: load beside, verify, switch the table, drain, take down. No Ray in here.

A version that cannot be served never gets traffic: its name keeps meaning the version before, and the table says why.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

from bco_ray.errors import BcoError
from bco_ray.serving.args import ServeArgs, Served, base_directory, describe_version
from bco_ray.serving.engines.protocol import Adapter, Engine
from bco_ray.serving.versions.routes import Route, Table
from bco_ray.serving.versions.wanted import Wanted
from bco_ray.storage import files
from bco_ray.telemetry import logger

RETRY_SECONDS = 60.0
"""A refused version is tried again after so long: the reason may have been a full machine."""

GATEWAY_LOST_SECONDS = 15.0


@dataclass(frozen=True)
class Home:
    """One engine's place: `key` is its application's name, `directory` the weights that it starts with."""

    key: str
    directory: Path
    context_window: int


class Fleet(Protocol):
    """Starts and ends engines."""

    async def ensure(self, home: Home) -> Engine:
        """The running engine of this home, started if there is none. Raises BcoError if it does not become ready."""

    async def remove(self, key: str) -> None:
        """Take an engine down that nobody uses any more; an unknown one is no error."""

    async def running(self) -> set[str]:
        """Keys of all engines there are, also those that an earlier life of this process started."""


Check = Callable[[str, Path], Awaitable[None]]
"""Raises BcoError if the version (reference, directory) must not be served: its files are not what was registered."""

Probe = Callable[[Engine, Route], Awaitable[None]]
"""Generates once; raises BcoError if that fails."""


@dataclass
class Gateways:
    """What the gateways said last: which table they use, and how many requests they have in each home."""

    seen: dict[str, tuple[float, int, dict[str, int]]] = field(default_factory=dict)

    def heard(self, gateway: str, generation: int, in_flight: dict[str, int]) -> None:
        """Note one report."""
        self.seen[gateway] = (time.monotonic(), generation, in_flight)

    def left(self, home: str, generation: int) -> bool:
        """Whether every gateway alive uses a table at least this new and has no request in the home."""
        now = time.monotonic()
        self.seen = {g: report for g, report in self.seen.items() if now - report[0] < GATEWAY_LOST_SECONDS}
        return all(at >= generation and not in_flight.get(home) for _, at, in_flight in self.seen.values())


class Rollout:
    """Owns the table. `follow` is called with what is wanted, again and again, by one task."""

    def __init__(self, args: ServeArgs, fleet: Fleet, check: Check, probe: Probe) -> None:
        self.table = Table()
        self.gateways = Gateways()
        self._args = args
        self._fleet = fleet
        self._check = check
        self._probe = probe
        self._ready: dict[str, Route] = {}
        self._refused: dict[str, tuple[float, str]] = {}
        self._leaving: dict[str, tuple[int, float]] = {}  # home -> generation without it, when it began to leave
        self._changed = asyncio.Condition()

    async def follow(self, wanted: Wanted) -> None:
        """Make what is wanted ready, publish it, and take down what nobody needs."""
        for reference in wanted.required:
            if reference not in self._ready and not self._recently_refused(reference):
                await self._prepare(reference, wanted.directories[reference])
        await self._publish(wanted)
        await self._take_down()

    def heard(self, gateway: str, table: Table, in_flight: dict[str, int]) -> None:
        """A gateway's report. One that knows more than we do (we were restarted) tells us what was served."""
        self.gateways.heard(gateway, table.generation, in_flight)
        if table.generation > self.table.generation:
            self.table = table

    async def adopt(self) -> None:
        """After a restart: what a gateway told us of, and still runs, is ready as it is."""
        running = await self._fleet.running()
        named = set(self.table.names.values())
        self._ready = {r: route for r, route in self.table.routes.items() if r in named and route.home in running}

    async def newer(self, generation: int, timeout_seconds: float) -> Table | None:
        """The table, as soon as it is newer than `generation`; None if that takes too long."""
        async with self._changed:
            try:
                await asyncio.wait_for(
                    self._changed.wait_for(lambda: self.table.generation > generation), timeout_seconds
                )
            except TimeoutError:
                return None
            return self.table

    def _recently_refused(self, reference: str) -> bool:
        at, _ = self._refused.get(reference, (float("-inf"), ""))
        return time.monotonic() - at < RETRY_SECONDS

    async def _prepare(self, reference: str, directory: Path) -> None:
        try:
            await self._check(reference, directory)
            route, home = self._route(reference, directory)
            engine = await self._fleet.ensure(home)
            self._leaving.pop(home.key, None)
            if route.adapter:
                await engine.load_adapter(route.adapter)
            await self._probe(engine, route)
        except BcoError as error:
            logger.error("%s is not served: %s", reference, error)
            self._refused[reference] = (time.monotonic(), str(error))
        else:
            self._ready[reference] = route
            self._refused.pop(reference, None)

    def _route(self, reference: str, directory: Path) -> tuple[Route, Home]:
        served = describe_version(reference, directory, self._args)
        base = base_directory(directory)
        home = Home(home_key(base), base, served.context_window)
        adapter = Adapter(reference, directory) if base != directory else None
        return Route(served, home.key, adapter), home

    async def _publish(self, wanted: Wanted) -> None:
        names = {name: good for name, meant in wanted.names.items() if (good := self._good(name, meant))}
        canaries = {name: c for name, c in wanted.canaries.items() if c.reference in self._ready}
        used = list(dict.fromkeys([*names.values(), *(c.reference for c in canaries.values())]))
        routes = {reference: self._ready[reference] for reference in used}
        routes |= self._on_demand(wanted, {route.home for route in routes.values()}, set(routes))
        refused = {r: self._refused[r][1] for r in wanted.required if r in self._refused}
        table = Table(self.table.generation, _with_aliases(routes, names), names, canaries, refused)
        if table != self.table:
            async with self._changed:
                self.table = replace(table, generation=self._next_generation())
                self._changed.notify_all()
            logger.info("table %d: %s", self.table.generation, self.table.names)
        for reference in set(self._ready) - set(routes):
            del self._ready[reference]

    def _next_generation(self) -> int:
        """Grows also over a restart that nobody told us about."""
        return max(self.table.generation + 1, int(time.time() * 1000))

    def _good(self, name: str, reference: str) -> str | None:
        """What the name means, or went on meaning while that is not ready."""
        if reference in self._ready:
            return reference
        before = self.table.names.get(name)
        return before if before in self._ready else None

    def _on_demand(self, wanted: Wanted, homes: set[str], known: set[str]) -> dict[str, Route]:
        """Every other adapter whose base is served: loaded when first asked for."""
        found: dict[str, Route] = {}
        for reference, directory in wanted.directories.items():
            earlier = self.table.routes.get(reference)
            if reference in known or reference in self._refused:
                continue
            if earlier and earlier.adapter and earlier.home in homes:
                found[reference] = replace(earlier, served=replace(earlier.served, aliases=()))
            elif (base := base_directory(directory)) != directory and home_key(base) in homes:
                found[reference] = self._route(reference, directory)[0]
        return found

    async def _take_down(self) -> None:
        """Homes that no table names, once no gateway has a request there (or after the time that one may take)."""
        now, homes = time.monotonic(), self.table.homes
        for home in await self._fleet.running() - homes:
            generation, since = self._leaving.setdefault(home, (self.table.generation, now))
            if self.gateways.left(home, generation) or now - since > self._args.drain_seconds:
                await self._fleet.remove(home)
                del self._leaving[home]
        self._leaving = {home: left for home, left in self._leaving.items() if home not in homes}


def home_key(directory: Path) -> str:
    """The application of a base: versions are never changed in place, so the path names the weights."""
    return f"bco-model-{files.digest(str(directory))[:12]}"


def _with_aliases(routes: dict[str, Route], names: dict[str, str]) -> dict[str, Route]:
    """Each version knows the names that mean it, for the list of models."""
    said = {reference: tuple(n for n, r in names.items() if r == reference and "@" in n) for reference in routes}
    return {r: replace(route, served=_named(route.served, said[r])) for r, route in routes.items()}


def _named(served: Served, aliases: tuple[str, ...]) -> Served:
    return replace(served, aliases=aliases)
