"""What is recorded comes out of Ray's agent under the names that docs/operations.md has."""

from __future__ import annotations

import time
import urllib.request

import pytest
from prometheus_client.parser import text_string_to_metric_families

from bco_ray.telemetry.meters import Meter, RayMeters

COUNTED = Meter("bco_test_things", "counter", "Things.", ("kind",))
NOW = Meter("bco_test_level", "gauge", "Level.")
TOOK = Meter("bco_test_seconds", "histogram", "Seconds.", (), (1.0, 10.0))


@pytest.mark.ray
@pytest.mark.timeout(120)
def test_names_labels_and_values_as_prometheus_sees_them(ray_cluster: None) -> None:
    import ray

    meters = RayMeters()
    for value in (0, 1, 2):
        meters.record(COUNTED, value, kind="new")
    meters.record(NOW, 0.5)
    meters.record(TOOK, 5.0)
    (node,) = ray.nodes()
    url = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
    found = _samples(url)
    assert found[COUNTED.shown, "new"] == 3
    assert found[NOW.shown, ""] == 0.5
    assert found[f"{TOOK.shown}_count", ""] == 1


def _samples(url: str) -> dict[tuple[str, str], float]:
    """By name and kind, once they are there: processes tell their agent every ten seconds."""
    deadline = time.monotonic() + 90
    while True:
        try:
            with urllib.request.urlopen(url, timeout=10) as answer:
                text = answer.read().decode()
        except OSError:
            text = ""
        families = list(text_string_to_metric_families(text))
        found = {(s.name, s.labels.get("kind", "")): s.value for family in families for s in family.samples}
        if (f"{TOOK.shown}_count", "") in found or time.monotonic() > deadline:
            return found
        time.sleep(1)
