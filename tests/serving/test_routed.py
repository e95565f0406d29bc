"""The gateway's catalog: it answers by the newest table it heard of, and knows what is in progress where."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from dataclasses import replace
from itertools import permutations
from pathlib import Path
from typing import Any, cast

import pytest
from fastapi.testclient import TestClient

from bco_ray.serving.args import ServeArgs, describe_version
from bco_ray.serving.engines.protocol import EngineDeadError, GenRequest, Health, Load, TokenEvent
from bco_ray.serving.http.api import create_api
from bco_ray.serving.metrics import Metrics
from bco_ray.serving.versions.catalog import ModelNotFoundError
from bco_ray.serving.versions.routed import NOTHING, RoutedCatalog
from bco_ray.serving.versions.routes import Canary, Route, Table
from bco_ray.storage.feedback_log import Completion, FeedbackLog
from bco_ray.testing.tiny import write_tiny_model


class Engine:
    """Only says how it is."""

    def __init__(self, home: str) -> None:
        self.home = home

    async def health(self) -> Health:
        return Health(self.home != "sick", self.home)

    async def load(self) -> Load:
        return Load(1, 2, adapters=(self.home,))


class Says(Engine):
    """And answers."""

    async def generate(self, request: GenRequest) -> AsyncGenerator[TokenEvent]:
        yield TokenEvent([5], "yes", "stop")


@pytest.fixture
def table(tmp_path: Path) -> Table:
    directory = write_tiny_model(tmp_path / "model")
    args = ServeArgs(follow=["helper"], storage=tmp_path)
    routes = {f"helper/{n}": Route(describe_version(f"helper/{n}", directory, args), f"home-{n}") for n in (1, 2)}
    return Table(1, routes, {"helper": "helper/2", "helper@prod": "helper/2"})


def switched(table: Table) -> RoutedCatalog:
    engine: Any = Engine
    catalog = RoutedCatalog(engine)
    asyncio.run(catalog.switch(table))
    return catalog


def test_before_the_first_table_nothing_is_ready() -> None:
    catalog = RoutedCatalog(lambda home: pytest.fail("no engine is asked for"))
    with pytest.raises(EngineDeadError, match="no model is ready yet"), catalog.lease("helper", None):
        pass
    assert not asyncio.run(catalog.health()).ok


def test_why_nothing_is_served_is_said(table: Table) -> None:
    catalog = switched(Table(1, refused={"helper/1": "NaN in layer 3"}))
    assert asyncio.run(catalog.health()) == Health(False, f"{NOTHING}: helper/1: NaN in layer 3")


def test_nothing_is_final_while_another_version_may_become_ready() -> None:
    catalog = switched(Table(1, refused={"helper/1": "NaN in layer 3"}, pending=True))
    assert asyncio.run(catalog.health()) == Health(False, "no model is ready yet; helper/1: NaN in layer 3")


def test_a_lease_counts_until_it_ends(table: Table) -> None:
    catalog = switched(table)
    with catalog.lease("helper@prod", None) as target:
        assert target.served.model_id == "helper/2"
        assert dict(catalog.in_flight) == {"home-2": 1}
        asyncio.run(catalog.switch(Table(2, {"helper/1": table.routes["helper/1"]}, {"helper": "helper/1"})))
        assert catalog.in_flight["home-2"] == 1
        with catalog.lease("helper", None) as newer:
            assert newer.served.model_id == "helper/1"
    assert not any(catalog.in_flight.values())
    with pytest.raises(ModelNotFoundError, match="helper/1"), catalog.lease("helper@prod", None):
        pass


def test_who_decided_on_a_version_is_kept_with_the_answer(table: Table, tmp_path: Path) -> None:
    """The share of a canary that did, on both sides; for a version that was named, and without a canary, nothing."""
    tried = replace(table, generation=2, names={"helper": "helper/1", "helper@prod": "helper/1"})
    tried = replace(tried, canaries={"helper": Canary("helper/2", 50), "gone": Canary("gone/9", 50)})
    engine: Any = Says
    catalog, log = RoutedCatalog(engine), FeedbackLog.open(tmp_path)
    asyncio.run(catalog.switch(tried))
    with TestClient(create_api(catalog, log), base_url="http://localhost") as client:

        def asked(model: str, user: str) -> Completion:
            body = {"model": model, "user": user, "messages": [{"role": "user", "content": "Hi"}]}
            return log.get_completion(client.post("/v1/chat/completions", json=body).json()["id"])

        drawn = [asked("helper", f"user-{number}") for number in range(20)]
        assert {(one.model, one.canary_percent) for one in drawn} == {("helper/1", 50.0), ("helper/2", 50.0)}
        named = [asked(name, "user-1") for name in ("helper/1", "helper/2", "helper@prod")]
        assert {one.canary_percent for one in named} == {None}
        asyncio.run(catalog.switch(replace(table, generation=3)))
        assert asked("helper", "user-1").canary_percent is None


def test_all_engines_together(table: Table) -> None:
    catalog = switched(table)
    assert asyncio.run(catalog.load()) in (Load(2, 4, adapters=names) for names in permutations(("home-1", "home-2")))
    sick = Route(table.routes["helper/1"].served, "sick")
    assert not asyncio.run(switched(Table(1, {"helper/1": sick})).health()).ok


def test_switches_are_counted_by_name(table: Table) -> None:
    metrics, engine = Metrics(), cast(Any, Engine)
    catalog = RoutedCatalog(engine, lambda table: metrics.switched(table.names, len(table.refused)))
    asyncio.run(catalog.switch(table))
    asyncio.run(catalog.switch(replace(table, generation=2, names={"helper": "helper/1", "helper@prod": "helper/2"})))
    shown = metrics.render(None, ready=True).decode()
    assert 'bco_switches_total{name="helper"} 1.0' in shown
    assert 'bco_serves{model="helper/1",name="helper"} 1.0' in shown
    assert 'bco_serves{model="helper/2",name="helper"}' not in shown
    assert 'bco_switches_total{name="helper@prod"}' not in shown
