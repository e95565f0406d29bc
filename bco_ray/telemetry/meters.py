"""Metrics of what runs on the cluster: declared as values beside what they count, shown by Ray's agents.

Every machine's agent shows what its processes record; a process that ends takes its gauges along within half a minute.
Labels have few values: a run's name is one of them, for its process ends with the run; a user never is.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, Protocol

Kind = Literal["counter", "gauge", "histogram"]


@dataclass(frozen=True)
class Meter:
    """`name` in base units, and without what is put around it on the way to Prometheus."""

    name: str
    kind: Kind
    says: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()

    @property
    def shown(self) -> str:
        """As Prometheus has it; a histogram's samples have `_bucket`, `_sum` and `_count` behind that."""
        return f"ray_{self.name}_total" if self.kind == "counter" else f"ray_{self.name}"


class Meters(Protocol):
    """Where they are recorded."""

    def record(self, meter: Meter, value: float, **labels: str) -> None:
        """Add to a counter, set a gauge, put into a histogram. Every label of the meter's must be said."""


class NoMeters:
    """Nobody looks."""

    def record(self, meter: Meter, value: float, **labels: str) -> None:
        """See `Meters.record`."""


class RayMeters:
    """The agent of this machine's Ray, for a process that is connected to one."""

    def __init__(self) -> None:
        self._made: dict[str, Any] = {}

    def record(self, meter: Meter, value: float, **labels: str) -> None:
        """See `Meters.record`. Ray refuses a counter's zero."""
        if meter.kind == "counter" and value <= 0:
            return
        made = self._made.get(meter.name) or self._made.setdefault(meter.name, _made(meter))
        match meter.kind:
            case "counter":
                made.inc(value, labels)
            case "gauge":
                made.set(value, labels)
            case "histogram":
                made.observe(value, labels)


def _made(meter: Meter) -> Any:
    from ray.util import metrics

    match meter.kind:
        case "counter":
            return metrics.Counter(meter.name, meter.says, meter.labels)
        case "gauge":
            return metrics.Gauge(meter.name, meter.says, meter.labels)
        case "histogram":
            return metrics.Histogram(meter.name, meter.says, list(meter.buckets), meter.labels)
