"""What is to be seen of work while it runs: bars and lines for people, log lines, metrics and traces for machines.

stdout belongs to results (`--json` prints exactly one object there); everything here goes elsewhere.
"""

from bco_ray.telemetry.logs import configure_logging, log_context, logger
from bco_ray.telemetry.progress import (
    SECONDS_BETWEEN_LINES,
    Advance,
    Pace,
    Phases,
    PhaseTime,
    Progress,
    Reporter,
    Told,
    console,
    tell,
)
from bco_ray.telemetry.traces import span, traceparent

__all__ = [
    "SECONDS_BETWEEN_LINES",
    "Advance",
    "Pace",
    "PhaseTime",
    "Phases",
    "Progress",
    "Reporter",
    "Told",
    "configure_logging",
    "console",
    "log_context",
    "logger",
    "span",
    "tell",
    "traceparent",
]
