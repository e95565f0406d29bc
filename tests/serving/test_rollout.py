"""What is served follows what is wanted: beside, checked, switched, drained. Against a fleet of scripted engines."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path

import pytest

from bco_ray.errors import ModelError, ServingError
from bco_ray.serving.args import ServeArgs
from bco_ray.serving.engines.protocol import Adapter, GenRequest, Health, Load, RequestRefusedError, TokenEvent
from bco_ray.serving.versions.checking import probe
from bco_ray.serving.versions.rollout import Home, Rollout, home_key
from bco_ray.serving.versions.routes import Canary, Table
from bco_ray.serving.versions.wanted import Wanted
from bco_ray.testing.tiny import write_tiny_model


@dataclass
class Fake:
    """An engine that says one word, or fails."""

    broken: set[str]
    adapters: list[str] = field(default_factory=list)

    async def start(self) -> None: ...
    async def stop(self) -> None: ...

    async def generate(self, request: GenRequest) -> AsyncGenerator[TokenEvent]:
        if request.adapter and request.adapter.name in self.broken:
            raise RequestRefusedError("not finite")
        yield TokenEvent([1], "yes", "stop")

    async def load_adapter(self, adapter: Adapter) -> None:
        self.adapters.append(adapter.name)

    async def unload_adapter(self, name: str) -> None: ...

    async def health(self) -> Health:
        return Health(True)

    async def load(self) -> Load:
        return Load(0, 0)


@dataclass
class FakeFleet:
    """Starts at once, or raises for a home in `failing`."""

    engines: dict[str, Fake] = field(default_factory=dict)
    broken: set[str] = field(default_factory=set)
    failing: set[str] = field(default_factory=set)

    async def ensure(self, home: Home) -> Fake:
        if home.key in self.failing:
            raise ServingError("does not start")
        return self.engines.setdefault(home.key, Fake(self.broken))

    async def remove(self, key: str) -> None:
        del self.engines[key]

    async def running(self) -> set[str]:
        return set(self.engines)


@dataclass
class Site:
    """A registry's directories, and a rollout over them."""

    root: Path
    fleet: FakeFleet = field(default_factory=FakeFleet)
    corrupt: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        args = ServeArgs(follow=["helper"], storage=self.root, drain_seconds=60)
        self.rollout = Rollout(args, self.fleet, self.check, probe)

    def home(self, number: int) -> str:
        return home_key(self.root / str(number), self.rollout._settings)

    async def check(self, reference: str, directory: Path) -> None:
        if reference in self.corrupt:
            raise ModelError(f"{reference}: model.safetensors was changed")

    def adapter(self, number: int) -> Path:
        directory = self.root / str(number)
        directory.mkdir(exist_ok=True)
        (directory / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(self.root / "1")}))
        return directory

    def follow(self, wanted: Wanted) -> Table:
        """Until nothing is being made ready."""

        async def settle() -> None:
            await self.rollout.follow(wanted)
            while await self.rollout.rest(0.0 if self.rollout._preparing is None else 10.0):
                await self.rollout.follow(wanted)

        asyncio.run(settle())
        return self.rollout.table


@pytest.fixture
def site(tmp_path: Path) -> Site:
    write_tiny_model(tmp_path / "1")
    write_tiny_model(tmp_path / "2")
    return Site(tmp_path)


def wants(site: Site, prod: int, *, adapters: bool = False, canary: Canary | None = None) -> Wanted:
    numbers = (1, 2, 3, 4) if adapters else (1, 2)
    directories = {f"helper/{n}": site.adapter(n) if n > 2 else site.root / str(n) for n in numbers}
    names = {"helper": f"helper/{prod}", "helper@prod": f"helper/{prod}"}
    return Wanted(directories, names, {"helper": canary} if canary else {})


def test_full_weights_go_beside_and_the_old_ones_leave_when_nobody_is_there(site: Site) -> None:
    first = site.follow(wants(site, 1))
    assert first.pick("helper@prod", None).served.model_id == "helper/1"
    site.rollout.heard("gateway", first, {site.home(1): 1})
    second = site.follow(wants(site, 2))
    assert second.pick("helper", None).served.model_id == "helper/2"
    assert second.generation > first.generation
    assert set(site.fleet.engines) == {site.home(1), site.home(2)}, "a request is still there"
    site.rollout.heard("gateway", first, {})
    site.follow(wants(site, 2))
    assert len(site.fleet.engines) == 2, "the gateway still uses the old table"
    site.rollout.heard("gateway", second, {})
    site.follow(wants(site, 2))
    assert set(site.fleet.engines) == {site.home(2)}


def test_adapters_share_their_base_and_others_come_on_demand(site: Site) -> None:
    table = site.follow(wants(site, 3, adapters=True))
    (engine,) = site.fleet.engines.values()
    assert engine.adapters == ["helper/3"]
    asked = table.pick("helper/4", None)
    assert asked.adapter == Adapter("helper/4", site.root / "4")
    assert table.pick("helper", None).served.aliases == ("helper@prod",)
    site.follow(wants(site, 4, adapters=True))
    assert engine.adapters == ["helper/3", "helper/4"]
    assert len(site.fleet.engines) == 1


@pytest.mark.parametrize("how", ["files", "start", "generation"])
def test_what_cannot_be_served_never_gets_traffic(site: Site, how: str) -> None:
    site.follow(wants(site, 3, adapters=True))
    if how == "files":
        site.corrupt.add("helper/4")
    elif how == "start":
        site.fleet.failing.add(site.home(1))
    else:
        site.fleet.broken.add("helper/4")
    table = site.follow(wants(site, 4, adapters=True))
    assert table.pick("helper@prod", None).served.model_id == "helper/3"
    assert "helper/4" not in table.routes
    assert list(table.refused) == ["helper/4"]
    back = site.follow(wants(site, 3, adapters=True))
    assert not back.refused


def test_nothing_changes_no_new_table(site: Site) -> None:
    first = site.follow(wants(site, 3, adapters=True))
    assert site.follow(wants(site, 3, adapters=True)) is first


def test_a_canary_is_sticky_by_user(site: Site) -> None:
    table = site.follow(wants(site, 1, canary=Canary("helper/2", 25)))
    users = [f"user-{n}" for n in range(400)]
    on_canary = {user for user in users if table.pick("helper", user).served.model_id == "helper/2"}
    assert 60 < len(on_canary) < 140
    assert on_canary == {user for user in users if table.pick("helper", user).served.model_id == "helper/2"}
    grown = site.follow(wants(site, 1, canary=Canary("helper/2", 50)))
    assert on_canary <= {user for user in users if grown.pick("helper", user).served.model_id == "helper/2"}
    assert grown.pick("helper@prod", next(iter(on_canary))).served.model_id == "helper/1", "an alias is exact"


def test_each_version_is_tried_on_other_people_first() -> None:
    users = [f"user-{n}" for n in range(400)]
    tried = [{user for user in users if Canary(reference, 10).takes(user)} for reference in ("a/2", "a/3", "b/2")]
    assert all(20 < len(people) < 70 for people in tried)
    assert all(len(one & other) < 20 for one, other in combinations(tried, 2))


def test_a_restarted_director_goes_on_from_what_a_gateway_knows(site: Site) -> None:
    known = site.follow(wants(site, 1))
    again = Site(site.root, site.fleet, {"helper/2"})

    async def restart() -> None:
        again.rollout.heard("gateway", known, {})
        await again.rollout.adopt()

    asyncio.run(restart())
    table = again.follow(wants(again, 2))
    assert table.pick("helper@prod", None).served.model_id == "helper/1"
    assert table.refused
    assert table.generation > known.generation


def test_other_engine_settings_take_another_engine_and_leave_no_gap(site: Site) -> None:
    known = site.follow(wants(site, 1))
    again = Site(site.root, site.fleet)
    again.rollout = Rollout(again.rollout._args.model_copy(update={"max_batch": 3}), site.fleet, again.check, probe)

    async def restart() -> Table:
        again.rollout.heard("gateway", known, {})
        await again.rollout.adopt()
        await again.rollout.follow(wants(again, 1))
        return again.rollout.table

    assert asyncio.run(restart()).pick("helper", None).home == site.home(1)
    assert again.follow(wants(again, 1)).pick("helper", None).home == again.home(1) != site.home(1)


def test_an_engine_stays_while_its_version_is_looked_at_again(site: Site) -> None:
    site.follow(wants(site, 1))
    site.rollout.heard("gateway", site.follow(wants(site, 2)), {})
    checking, looked = asyncio.Event(), asyncio.Event()

    async def check(reference: str, directory: Path) -> None:
        checking.set()
        await looked.wait()

    async def use() -> None:
        site.rollout._check = check
        await site.rollout.follow(wants(site, 1))
        await checking.wait()
        await site.rollout.follow(wants(site, 1))
        assert site.home(1) in site.fleet.engines
        looked.set()
        assert site.rollout._preparing is not None
        await site.rollout._preparing

    site.fleet.engines[site.home(1)] = Fake(set())
    asyncio.run(use())


def test_a_version_that_may_come_is_no_reason_to_give_up(site: Site) -> None:
    site.corrupt.add("helper/1")
    both = wants(site, 1)
    both.names["helper@old"] = "helper/2"
    seen: list[Table] = []

    async def use() -> None:
        await site.rollout.follow(both)
        while await site.rollout.rest(0.0 if site.rollout._preparing is None else 10.0):
            await site.rollout.follow(both)
            seen.append(site.rollout.table)

    asyncio.run(use())
    assert [(bool(table.refused), table.pending, sorted(table.names)) for table in seen[:1] + seen[-1:]] == [
        (True, True, []), (True, False, ["helper@old"]),
    ]  # fmt: skip


def test_going_back_does_not_wait_for_what_does_not_start(site: Site) -> None:
    site.follow(wants(site, 3, adapters=True))
    never = asyncio.Event()

    async def stuck(home: Home) -> Fake:
        await never.wait()
        raise AssertionError

    async def use() -> Table:
        site.fleet.ensure = stuck  # type: ignore[method-assign]
        await site.rollout.follow(wants(site, 2, adapters=True))
        assert await site.rollout.rest(0.01)
        back = wants(site, 3, adapters=True)
        back.names["helper@old"] = "helper/3"
        await site.rollout.follow(back)
        assert site.rollout._preparing is not None
        site.rollout._preparing.cancel()
        return site.rollout.table

    assert asyncio.run(use()).pick("helper@old", None).served.model_id == "helper/3"


@pytest.mark.parametrize("config", ['{"base_model_na', "{}", "[1]", '{"base_model_name_or_path": 3}'])
def test_a_version_that_nobody_promoted_and_nobody_can_read_is_in_nobodys_way(site: Site, config: str) -> None:
    site.adapter(4)
    wanted = wants(site, 3, adapters=True)
    (site.root / "4" / "adapter_config.json").write_text(config)
    table = site.follow(wanted)
    assert table.pick("helper", None).served.model_id == "helper/3"
    assert "helper/4" not in table.routes


def test_an_adapter_whose_files_were_changed_cannot_be_asked_for(site: Site) -> None:
    site.corrupt.add("helper/4")
    assert "helper/4" not in site.follow(wants(site, 3, adapters=True)).routes


def test_an_engine_that_went_away_is_started_again(site: Site) -> None:
    site.follow(wants(site, 1))
    lost = site.fleet.engines.pop(site.home(1))
    assert site.follow(wants(site, 1)).pick("helper", None).served.model_id == "helper/1"
    assert site.fleet.engines[site.home(1)] is not lost


def test_nothing_leaves_while_no_gateway_was_heard_of(site: Site) -> None:
    site.follow(wants(site, 1))
    site.follow(wants(site, 2))
    assert len(site.fleet.engines) == 2


def test_an_upstream_serves_no_other_base_under_its_name(site: Site) -> None:
    upstream = {"engine": "upstream", "upstream_url": "http://127.0.0.1:1", "upstream_model": "m"}
    args = ServeArgs.model_validate(
        {"follow": ["helper"], "storage": site.root, "upstream_base": site.root / "1", **upstream}
    )
    site.rollout = Rollout(args, site.fleet, site.check, probe)
    assert site.follow(wants(site, 1)).pick("helper", None).served.model_id == "helper/1"
    table = site.follow(wants(site, 2))
    assert table.pick("helper", None).served.model_id == "helper/1"
    assert "upstream_base" in table.refused["helper/2"]
    with pytest.raises(ValueError, match="upstream_base"):
        ServeArgs.model_validate({"follow": ["helper"], "storage": site.root, **upstream})
