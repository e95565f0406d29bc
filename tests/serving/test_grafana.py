"""The dashboard in docs/grafana asks for metrics, labels and label values that `/metrics` has."""

from __future__ import annotations

import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from bco_ray.serving.engines.protocol import Load
from bco_ray.serving.http.generation import Timing
from bco_ray.serving.metrics import Metrics
from bco_ray.storage.feedback_log import Choice

DASHBOARD = json.loads((Path(__file__).parents[2] / "docs" / "grafana" / "serving.json").read_text())
QUERIES = [target["expr"] for panel in DASHBOARD["panels"] for target in panel["targets"]]


@pytest.fixture(scope="module")
def exposed() -> dict[str, set[str]]:
    """Sample names with their labels, of a process that has counted one of each."""
    metrics = Metrics()
    metrics.served("/v1/models", 200, 0.1)
    choice = Choice("Hi", [1, 2], "stop", True)
    metrics.answered("helper/1", 3, 1, [choice], Timing(1.0, 2.0, 3.0))
    vote: Any = SimpleNamespace(model="helper/1", vote=SimpleNamespace(label=True))
    metrics.voted(vote)
    metrics.switched({"helper": "helper/1"}, 0)
    metrics.switched({"helper": "helper/2"}, 0)
    text = metrics.render(Load(0, 0), ready=True).decode()
    families = list(text_string_to_metric_families(text))
    return {sample.name: set(sample.labels) for family in families for sample in family.samples}


@pytest.mark.parametrize("query", QUERIES)
def test_every_query_finds_what_it_asks_for(query: str, exposed: dict[str, set[str]]) -> None:
    asked = re.findall(r"(bco_\w+)(?:\{([^}]*)\})?", query)
    assert asked
    for name, selector in asked:
        assert name in exposed
        assert set(re.findall(r"(\w+)=", selector)) <= exposed[name]
    for grouped in re.findall(r"by \(([^)]*)\)", query):
        assert set(grouped.split(", ")) <= set.union(*(exposed[name] for name, _ in asked))


def test_panels_have_titles_ids_and_a_place() -> None:
    places: list[tuple[int, int]] = []
    for panel in DASHBOARD["panels"]:
        place: dict[str, Any] = panel["gridPos"]
        places += [
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        ]
        assert panel["title"]
    assert len(set(places)) == len(places), "panels overlap"
    assert max(x for x, _ in places) < 24
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])


def test_the_variable_is_a_label(exposed: dict[str, set[str]]) -> None:
    (variable,) = [v for v in DASHBOARD["templating"]["list"] if v["type"] == "query"]
    found = re.fullmatch(r"label_values\((\w+), (\w+)\)", variable["query"])
    assert found
    assert found[2] in exposed[found[1]]
