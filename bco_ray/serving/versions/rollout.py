"""From what should be served to what is: load beside, verify, switch the table, drain, take down. No Ray in here.

A version that cannot be served never gets traffic: its name keeps meaning the version before, and the table says why.
Making one ready may take minutes, so it happens beside everything else, one version at a time: aliases that move back
meanwhile are followed at once.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

from bco_ray.errors import BcoError, ModelError
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
        """Whether every gateway alive uses a table at least this new and has no request in the home.

        Where none has been heard of nobody knows, so not.
        """
        now = time.monotonic()
        self.seen = {g: report for g, report in self.seen.items() if now - report[0] < GATEWAY_LOST_SECONDS}
        left = [at >= generation and not in_flight.get(home) for _, at, in_flight in self.seen.values()]
        return bool(left) and all(left)


class Rollout:
    """Owns the table. `follow` is called with what is wanted, again and again, by one task."""

    def __init__(self, args: ServeArgs, fleet: Fleet, check: Check, probe: Probe) -> None:
        self.table = Table()
        self.gateways = Gateways()
        self._args = args
        self._settings = args.engine_settings
        self._fleet = fleet
        self._check = check
        self._probe = probe
        self._ready: dict[str, Route] = {}
        self._spare: dict[str, Route] = {}  # adapters that were checked, and can be loaded when they are asked for
        self._bases: dict[str, str | None] = {}  # by reference: the home whose adapter it is; None for whole weights
        self._preparing: asyncio.Task[None] | None = None
        self._starting: str | None = None
        self._refused: dict[str, tuple[float, str]] = {}
        self._leaving: dict[str, tuple[int, float]] = {}  # home -> generation without it, when it began to leave
        self._changed = asyncio.Condition()

    async def follow(self, wanted: Wanted) -> None:
        """Begin to make ready what is not, publish what is, and take down what nobody needs."""
        running = await self._fleet.running()
        self._ready = {r: route for r, route in self._ready.items() if route.home in running}
        if self._preparing is None or self._preparing.done():
            work = self._next(wanted)
            self._preparing = asyncio.create_task(work) if work else None
        await self._publish(wanted)
        await self._take_down()

    async def rest(self, seconds: float) -> bool:
        """Until it is time to follow again: so long, or until what is being made ready is. Whether anything was."""
        if self._preparing is None:
            await asyncio.sleep(seconds)
            return False
        await asyncio.wait({self._preparing}, timeout=seconds)
        return True

    def heard(self, gateway: str, table: Table, in_flight: dict[str, int]) -> None:
        """A gateway's report. One that knows more than we do (we were restarted) tells us what was served."""
        self.gateways.heard(gateway, table.generation, in_flight)
        if table.generation > self.table.generation:
            self.table = table

    async def adopt(self) -> None:
        """After a restart: what a gateway told us of, and still runs, is ready as it is."""
        running, named = await self._fleet.running(), set(self.table.names.values())
        known = {reference: route for reference, route in self.table.routes.items() if route.home in running}
        self._ready = {reference: route for reference, route in known.items() if reference in named}
        self._spare = {reference: route for reference, route in known.items() if route.adapter and self._as_set(route)}

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

    def _is_ready(self, reference: str) -> bool:
        """On an engine with the settings of now; one with those of an earlier deployment serves until then."""
        return reference in self._ready and self._as_set(self._ready[reference])

    def _as_set(self, route: Route) -> bool:
        return route.home.endswith(f"-{self._settings}")

    def _next(self, wanted: Wanted) -> Coroutine[Any, Any, None] | None:
        """The most urgent thing to do: what a name means, else an adapter that could be asked for."""
        for reference in wanted.required:
            if not self._is_ready(reference) and not self._recently_refused(reference):
                directory = wanted.directories[reference]
                with suppress(BcoError):  # the check will say what is wrong with it
                    self._starting = self._home_key(base_directory(directory))
                return self._attempt(reference, self._made_ready(reference, directory))
        homes = {route.home for route in self._ready.values()}
        for reference, directory in wanted.directories.items():
            known = reference in self._ready or reference in self._spare or self._recently_refused(reference)
            if not known and self._base_home(reference, directory) in homes:
                return self._attempt(reference, self._checked(reference, directory))
        return None

    async def _attempt(self, reference: str, work: Awaitable[None]) -> None:
        try:
            await work
        except Exception as error:  # noqa: BLE001  whatever is wrong with this version, the others are served
            self._refuse(reference, error)
        else:
            self._refused.pop(reference, None)
        finally:
            self._starting = None

    def _refuse(self, reference: str, error: Exception) -> None:
        logger.error("%s is not served: %s", reference, error, exc_info=not isinstance(error, BcoError))
        reason = str(error) if isinstance(error, BcoError) else f"{type(error).__name__}: {error}"
        self._refused[reference] = (time.monotonic(), reason)
        self._spare.pop(reference, None)

    async def _made_ready(self, reference: str, directory: Path) -> None:
        await self._check(reference, directory)
        route, home = self._route(reference, directory)
        engine = await self._fleet.ensure(home)
        self._leaving.pop(home.key, None)
        if route.adapter:
            await engine.load_adapter(route.adapter)
        await self._probe(engine, route)
        self._ready[reference] = route
        if route.adapter:
            self._spare[reference] = route

    async def _checked(self, reference: str, directory: Path) -> None:
        await self._check(reference, directory)
        self._spare[reference] = self._route(reference, directory)[0]

    def _base_home(self, reference: str, directory: Path) -> str | None:
        """The home whose adapter this version is; None for whole weights, and for what cannot be read."""
        if reference not in self._bases:
            try:
                base = base_directory(directory)
            except BcoError as error:
                self._refuse(reference, error)
                return None
            self._bases[reference] = self._home_key(base) if base != directory else None
        return self._bases[reference]

    def _home_key(self, base: Path) -> str:
        return home_key(base, self._settings)

    def _route(self, reference: str, directory: Path) -> tuple[Route, Home]:
        served = describe_version(reference, directory, self._args)
        base = base_directory(directory)
        if self._args.upstream_base not in (None, base):
            raise ModelError(
                f"{reference}: stands on {base}, the upstream server runs {self._args.upstream_base} (upstream_base)."
            )
        home = Home(self._home_key(base), base, served.context_window)
        adapter = Adapter(reference, directory) if base != directory else None
        return Route(served, home.key, adapter), home

    async def _publish(self, wanted: Wanted) -> None:
        names = {name: good for name, meant in wanted.names.items() if (good := self._good(name, meant))}
        canaries = {name: c for name, c in wanted.canaries.items() if c.reference in self._ready}
        used = list(dict.fromkeys([*names.values(), *(c.reference for c in canaries.values())]))
        routes = {reference: self._ready[reference] for reference in used}
        routes |= self._on_demand(wanted, {route.home for route in routes.values()}, set(routes))  # asked for by name
        refused = {r: self._refused[r][1] for r in wanted.required if r in self._refused}
        pending = any(r not in self._ready and r not in refused for r in wanted.required)
        table = Table(self.table.generation, _with_aliases(routes, names), names, canaries, refused, pending)
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
        there = self._spare.keys() & wanted.directories.keys() - known - self._refused.keys()
        return {r: route for r in sorted(there) if (route := self._spare[r]).home in homes}

    async def _take_down(self) -> None:
        """Homes that no table names, once no gateway has a request there (or after the time that one may take)."""
        running, now = await self._fleet.running(), time.monotonic()
        homes = {*self.table.homes, *(route.home for route in self._ready.values()), self._starting}
        for home in running - homes:
            generation, since = self._leaving.setdefault(home, (self.table.generation, now))
            over = self.gateways.left(home, generation) or now - since > self._args.drain_seconds
            if over and home != self._starting:  # which may have changed while another one was taken down
                await self._fleet.remove(home)
                self._leaving.pop(home, None)
        self._leaving = {home: left for home, left in self._leaving.items() if home not in homes}


def home_key(directory: Path, settings: str) -> str:
    """The application of a base with such engine settings: versions never change, so the path names the weights."""
    return f"bco-model-{files.digest(str(directory))[:12]}-{settings}"


def _with_aliases(routes: dict[str, Route], names: dict[str, str]) -> dict[str, Route]:
    """Each version knows the names that mean it, for the list of models."""
    said = {reference: tuple(n for n, r in names.items() if r == reference and "@" in n) for reference in routes}
    return {r: replace(route, served=_named(route.served, said[r])) for r, route in routes.items()}


def _named(served: Served, aliases: tuple[str, ...]) -> Served:
    return replace(served, aliases=aliases)
