"""docs/operations.md lists the metrics that the code has; scrape config, alerts and dashboards ask for no others."""

from __future__ import annotations

import importlib.util
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from bco_ray.control import metrics as control
from bco_ray.pipeline import metrics as pipeline
from bco_ray.serving.metrics import Metrics
from bco_ray.telemetry.meters import Meter

DOCS = Path(__file__).parents[1] / "docs"
METERS = (*control.METERS, *pipeline.METERS)
Metric = tuple[str, frozenset[str]]
"""Kind and labels."""


@pytest.fixture(scope="module")
def coded() -> dict[str, Metric]:
    served = Metrics()
    shown = {meter.shown: (meter.kind, frozenset(meter.labels)) for meter in METERS}
    for name, metric in served._registry._names_to_collectors.items():
        if type(metric).__name__ == "Info":
            shown["bco_gateway_info"] = ("gauge", frozenset({"host", "pid"}))
        elif name.endswith("_total") or (type(metric).__name__ != "Counter" and name == metric._name):  # type: ignore[attr-defined]
            shown[name] = (type(metric).__name__.lower(), frozenset(metric._labelnames))  # type: ignore[attr-defined]
    return shown


def documented() -> dict[str, Metric]:
    rows = re.findall(r"^\| `(\w+)` \| (\w+) \| (.*?) ?\| .+ \|$", (DOCS / "operations.md").read_text(), re.MULTILINE)
    return {name: (kind, frozenset(re.findall(r"`(\w+)`", labels))) for name, kind, labels in rows}


def samples() -> dict[str, frozenset[str]]:
    """What can be asked for, and by which labels."""
    found: dict[str, frozenset[str]] = {"up": frozenset({"job", "instance"})}
    for name, (kind, labels) in documented().items():
        if kind == "histogram":
            found |= {f"{name}_sum": labels, f"{name}_count": labels, f"{name}_bucket": labels | {"le"}}
        else:
            found[name] = labels
    return found


def expressions() -> Iterator[tuple[str, str]]:
    for path in sorted((DOCS / "grafana").glob("*.json")):
        for panel in json.loads(path.read_text())["panels"]:
            yield from ((f"{path.stem}: {panel['title']}", target["expr"]) for target in panel["targets"])
    for rule in rules():
        yield f"alert {rule['alert']}", rule["expr"]


def rules() -> list[dict[str, Any]]:
    return [rule for group in yaml.safe_load((DOCS / "alerts.yml").read_text())["groups"] for rule in group["rules"]]


def test_the_table_is_what_the_code_has(coded: dict[str, Metric]) -> None:
    assert documented() == coded


@pytest.mark.parametrize("meter", METERS, ids=lambda meter: meter.name)
def test_names_are_in_base_units_and_labels_are_few(meter: Meter) -> None:
    assert re.fullmatch(r"bco(_[a-z]+)+", meter.name)
    assert not re.search(r"_(ms|milliseconds|minutes|hours|mb|gb|percent|total)$", meter.name)
    assert set(meter.labels) <= {"status", "result", "kind", "run", "source", "reason"}
    assert bool(meter.buckets) == (meter.kind == "histogram")
    assert meter.says.endswith((".", "none."))


@pytest.mark.parametrize(("where", "expression"), expressions(), ids=lambda text: text[:60])
def test_every_expression_asks_for_what_there_is(where: str, expression: str) -> None:
    known = samples()
    asked = re.findall(r"\b((?:ray_)?bco_\w+|up)\b(?:\{([^}]*)\})?", expression)
    assert asked, where
    for name, selector in asked:
        assert name in known, where
        assert set(re.findall(r"(\w+)=", selector)) <= known[name], where
    for grouped in re.findall(r"by \(([^)]*)\)", expression):
        assert set(grouped.split(", ")) - {"instance"} <= set.union(*(set(known[name]) for name, _ in asked)), where
    assert expression.count("(") == expression.count(")")


def test_counters_are_never_shown_without_a_rate_of_them_except_so_far() -> None:
    """A counter starts again with its process: only the curves that say `so far` may show one as it is."""
    for where, expression in expressions():
        for counter in re.findall(r"\b\w+_total\b", expression):
            if not where.startswith("scoring: "):
                assert re.search(rf"(rate|increase)\({counter}\b", expression), where


def test_dashboards_are_what_their_generator_says(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = importlib.util.spec_from_file_location("generate_dashboards", DOCS / "generate_dashboards.py")
    assert spec
    assert spec.loader
    generator: Any = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "generate_dashboards", generator)  # dataclasses look there
    spec.loader.exec_module(generator)
    for dashboard in generator.DASHBOARDS:
        current = (generator.HERE / f"{dashboard.name}.json").read_text() == generator.drawn(dashboard)
        assert current, f"docs/grafana/{dashboard.name}.json is old: run `{generator.COMMAND}`."


@pytest.mark.parametrize("path", sorted((DOCS / "grafana").glob("*.json")), ids=lambda path: path.stem)
def test_panels_have_titles_and_places_of_their_own(path: Path) -> None:
    page = json.loads(path.read_text())
    assert page["uid"] == f"bco-ray-{path.stem}"
    places: list[tuple[int, int]] = []
    for panel in page["panels"]:
        at = panel["gridPos"]
        places += [(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])]
        assert panel["title"]
    assert len(set(places)) == len(places), "panels overlap"
    assert max(x for x, _ in places) < 24
    for variable in page["templating"]["list"]:
        if found := re.fullmatch(r"label_values\((\w+), (\w+)\)", variable["query"]):
            assert found[2] in samples()[found[1]]


def test_every_metric_of_the_jobs_is_on_a_dashboard() -> None:
    shown = " ".join(expression for where, expression in expressions() if not where.startswith("alert"))
    assert [meter.shown for meter in METERS if meter.shown not in shown] == []


def test_prometheus_scrapes_the_agents_and_the_server() -> None:
    config = yaml.safe_load((DOCS / "prometheus.yml").read_text())
    assert set(config) == {"global", "rule_files", "scrape_configs"}
    assert [(DOCS / name).is_file() for name in config["rule_files"]] == [True]
    ray, server = config["scrape_configs"]
    import ray._private.ray_constants as constants

    assert ray["file_sd_configs"] == [{"files": [f"/tmp/ray/{constants.PROMETHEUS_SERVICE_DISCOVERY_FILE}"]}]
    assert server["metrics_path"] == "/metrics"
    assert server["authorization"].keys() == {"type", "credentials_file"}  # a key in a file, none in the config
    assert server["job_name"] == "bco-server"
    assert 'up{job="bco-server"}' in (DOCS / "alerts.yml").read_text()


def test_alerts_say_what_it_is_and_what_to_do() -> None:
    for rule in rules():
        assert set(rule) - {"for"} == {"alert", "expr", "labels", "annotations"}
        assert set(rule["annotations"]) == {"summary", "description"}
        assert rule["labels"]["severity"] in {"page", "ticket"}
        assert re.fullmatch(r"[A-Z][A-Za-z]+", rule["alert"])
        assert re.fullmatch(r"\d+[smh]", rule.get("for", "1m"))
        assert all(name in rule["expr"] for name in re.findall(r"\$labels\.(\w+)", str(rule["annotations"])))
    names = [rule["alert"] for rule in rules()]
    assert len(set(names)) == len(names)


def test_what_the_server_says_of_itself_and_of_whom_it_turns_away() -> None:
    metrics = Metrics()
    metrics.served("/v1/chat/completions", 429, 0.01)
    metrics.served("/v1/chat/completions", 400, 0.01)
    text = metrics.render(None, ready=False).decode()
    shown = {sample.name: sample for family in text_string_to_metric_families(text) for sample in family.samples}
    assert shown["bco_ready"].value == 0
    turned_away = shown["bco_turned_away_total"]
    assert (turned_away.labels, turned_away.value) == ({"route": "/v1/chat/completions"}, 1)
