"""Writes docs/grafana/{jobs,scoring,training,thumbs}.json: `python docs/generate_dashboards.py`. serving.json is older
and stands by itself.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent / "grafana"
COMMAND = "python docs/generate_dashboards.py"

_SOURCE = {"type": "prometheus", "uid": "${datasource}"}
_RATE = "[$__rate_interval]"
_OF_RUN = 'run=~"$run"'


@dataclass(frozen=True)
class Panel:
    """`queries`: (expression, legend). `small`: one number, four in a row; else a curve, two in a row."""

    title: str
    unit: str
    queries: Sequence[tuple[str, str]]
    says: str = ""
    small: bool = False


@dataclass(frozen=True)
class Dashboard:
    """`variable`: the label to choose by, and the metric whose values of it are offered."""

    name: str
    panels: Sequence[Panel]
    variable: tuple[str, str] | None = None


def number(title: str, unit: str, expression: str, says: str = "") -> Panel:
    """One number."""
    return Panel(title, unit, [(expression, "")], says, small=True)


def curve(title: str, unit: str, *queries: tuple[str, str], says: str = "") -> Panel:
    """Over time."""
    return Panel(title, unit, queries, says)


def quantiles(metric: str, by: str = "") -> list[tuple[str, str]]:
    """The middle and the slowest one in twenty of a histogram."""
    where, legend = (f"{{{_OF_RUN}}}", "{{run}} ") if by else ("", "")
    grouped = f"le, {by}" if by else "le"
    rates = f"sum by ({grouped}) (rate({metric}_bucket{where}{_RATE}))"
    return [(f"histogram_quantile({q}, {rates})", f"{legend}{name}") for q, name in ((0.5, "p50"), (0.95, "p95"))]


def newest(metric: str) -> tuple[str, str]:
    """A gauge of each run."""
    return f"max by (run) ({metric}{{{_OF_RUN}}})", "{{run}}"


def rate(metric: str, by: str) -> tuple[str, str]:
    """Per second."""
    legend = " ".join(f"{{{{{label}}}}}" for label in by.split(", "))
    where = f"{{{_OF_RUN}}}" if "run" in by else ""
    return f"sum by ({by}) (rate({metric}{where}{_RATE}))", legend


def hourly(metric: str, legend: str, by: str = "", where: str = "") -> tuple[str, str]:
    """Per hour."""
    grouped = f"sum by ({by})" if by else "sum"
    return f"{grouped} (rate({metric}{where}{_RATE})) * 3600", legend


def gained(metric: str) -> tuple[str, str]:
    """By a run's counter, between two points of the curve."""
    return f"sum by (run) (increase({metric}{{{_OF_RUN}}}{_RATE}))", "{{run}}"


def so_far(metric: str, by: str) -> tuple[str, str]:
    """A run's counter itself."""
    return f"sum by ({by}) ({metric}{{{_OF_RUN}}})", " ".join(f"{{{{{label}}}}}" for label in by.split(", "))


def of_last_hour(part: str, whole: str) -> tuple[str, str]:
    """The share of one counter in another, by model."""
    return f"sum by (model) (increase({part}[1h])) / sum by (model) (increase({whole}[1h]))", "{{model}}"


_LOOK = "ray_bco_reconciler_last_look_timestamp_seconds"

JOBS = Dashboard("jobs", [
    number("Running", "short", 'max(ray_bco_jobs{status="running"})'),
    number("Waiting", "short", 'max(ray_bco_jobs{status="queued"})'),
    number("Oldest waits for", "s", "max(ray_bco_job_oldest_wait_seconds)", "Since it was asked for; it never ran."),
    number("Last look", "s", f"time() - max({_LOOK})", "Ago; there is one each second."),
    curve("Jobs that have not ended", "short", ("max by (status) (ray_bco_jobs)", "{{status}}")),
    curve("Accepted, begun, ended, per hour", "short", hourly("ray_bco_jobs_created_total", "accepted"),
          hourly("ray_bco_jobs_started_total", "begun"), hourly("ray_bco_jobs_ended_total", "{{result}}", "result")),
    curve("Seconds in the queue", "s", *quantiles("ray_bco_job_queue_seconds"), says="To the first run."),
    curve("GPUs held", "short", (f"sum(rate(ray_bco_job_gpu_seconds_total{_RATE}))", "GPUs")),
    curve("Attempts, per hour", "short", hourly("ray_bco_job_attempts_total", "sent"),
          hourly("ray_bco_job_attempts_lost_total", "lost")),
    curve("Losses in a row, of the worst job", "short", ("max(ray_bco_job_losses_in_a_row)", "losses"),
          says="Without a new checkpoint; at eight it fails."),
    curve("Looks at all jobs, per second", "short", (f"sum(rate(ray_bco_reconciler_looks_total{_RATE}))", "looks"),
          (f"sum by (kind) (rate(ray_bco_reconciler_errors_total{_RATE}))", "not settled: {{kind}}")),
    curve("Webhook deliveries, per hour", "short", hourly("ray_bco_webhook_deliveries_total", "{{result}}", "result")),
    curve("Storage", "bytes", ("min(ray_bco_storage_free_bytes)", "free"), ("min(ray_bco_storage_size_bytes)", "size")),
])  # fmt: skip

TRAINING = Dashboard("training", [
    curve("Done", "percentunit", newest("ray_bco_train_progress_ratio")),
    curve("Loss", "short", newest("ray_bco_train_loss")),
    curve("Reward margin", "short", newest("ray_bco_train_reward_margin"), says="Thumbs-up less thumbs-down."),
    curve("Reward shift", "short", newest("ray_bco_train_delta")),
    curve("Tokens per second, newest step", "short", newest("ray_bco_train_tokens_per_second")),
    curve("Tokens per second, pauses and failures included", "short", rate("ray_bco_train_tokens_total", "run")),
    curve("Seconds of a step", "s", *quantiles("ray_bco_train_step_seconds", "run")),
    curve("Steps per second", "short", rate("ray_bco_train_steps_total", "run")),
    curve("Workers", "short", newest("ray_bco_train_workers")),
    curve("Worker groups that failed", "short", gained("ray_bco_train_failures_total")),
    curve("Seconds of a checkpoint", "s", *quantiles("ray_bco_checkpoint_seconds", "run"), says="Beside the training."),
    curve("Checkpoints that could not be written", "short", gained("ray_bco_checkpoint_failures_total"), says="Tries."),
    curve("Skipped steps", "short", gained("ray_bco_train_skipped_steps_total"), says="Their gradient was not finite."),
], ("run", "ray_bco_train_steps_total"))  # fmt: skip

SCORING = Dashboard("scoring", [
    curve("Rows per second", "short", rate("ray_bco_scoring_rows_total", "run")),
    curve("Rows", "short", so_far("ray_bco_scoring_rows_total", "run")),
    curve("Parts of finished scorings", "short", so_far("ray_bco_scoring_parts_total", "run")),
    curve("Rows of finished scorings", "short", so_far("ray_bco_scoring_reference_rows_total", "run, source"),
          says="Computed, or known by their content."),
    curve("In quarantine", "short", so_far("ray_bco_scoring_dropped_rows_total", "run, reason")),
], ("run", "ray_bco_scoring_rows_total"))  # fmt: skip

_OF_MODEL = 'model=~"$model"'
_VOTES = f'bco_votes_total{{label=~"up|down", {_OF_MODEL}}}'
_UPS = f'bco_votes_total{{label="up", {_OF_MODEL}}}'
_REQUESTS = 'sum by (route, status) (rate(bco_request_seconds_count{route=~"/v1/feedback.*"}[$__rate_interval]))'
_VOTING = 'sum by (le) (rate(bco_request_seconds_bucket{route="/v1/feedback"}[$__rate_interval]))'

THUMBS = Dashboard("thumbs", [
    curve("Thumbs up, of up and down", "percentunit", of_last_hour(_UPS, _VOTES), says="Of the last hour."),
    curve("Votes per hour", "short",
          hourly("bco_votes_total", "{{model}} {{label}}", "model, label", f"{{{_OF_MODEL}}}")),
    curve("Votes per answer", "percentunit", of_last_hour(_VOTES, f"bco_answers_total{{{_OF_MODEL}}}"),
          says="Of the last hour."),
    curve("Requests to vote, per second", "reqps", (_REQUESTS, "{{route}} {{status}}")),
    curve("Seconds to take a vote", "s", (f"histogram_quantile(0.5, {_VOTING})", "p50"),
          (f"histogram_quantile(0.99, {_VOTING})", "p99")),
], ("model", "bco_answers_total"))  # fmt: skip

DASHBOARDS = (JOBS, SCORING, TRAINING, THUMBS)


def drawn(dashboard: Dashboard) -> str:
    """The file."""
    page = {
        "title": f"bco-ray {dashboard.name}", "uid": f"bco-ray-{dashboard.name}", "tags": ["bco-ray"],
        "schemaVersion": 39, "version": 1, "editable": True, "refresh": "30s",
        "time": {"from": "now-6h", "to": "now"}, "timezone": "", "annotations": {"list": []},
        "templating": {"list": _variables(dashboard)}, "panels": _panels(dashboard.panels),
    }  # fmt: skip
    return json.dumps(page, indent=1) + "\n"


def _variables(dashboard: Dashboard) -> list[dict[str, Any]]:
    source = {"name": "datasource", "label": "Prometheus", "type": "datasource", "query": "prometheus", "current": {}}
    if dashboard.variable is None:
        return [source]
    label, metric = dashboard.variable
    query = f"label_values({metric}, {label})"
    chosen = {
        "name": label, "label": label.capitalize(), "type": "query", "datasource": _SOURCE, "query": query,
        "definition": query, "refresh": 2, "multi": True, "includeAll": True, "allValue": ".*",
        "current": {"text": "All", "value": "$__all"},
    }  # fmt: skip
    return [source, chosen]


def _panels(panels: Sequence[Panel]) -> list[dict[str, Any]]:
    small = [panel for panel in panels if panel.small]
    large = [panel for panel in panels if not panel.small]
    top = 4 * bool(small)
    places = [{"x": 6 * n, "y": 0, "w": 6, "h": 4} for n in range(len(small))]
    places += [{"x": 12 * (n % 2), "y": top + 8 * (n // 2), "w": 12, "h": 8} for n in range(len(large))]
    return [_panel(n, *one) for n, one in enumerate(zip((*small, *large), places, strict=True), start=1)]


def _panel(number: int, panel: Panel, place: dict[str, int]) -> dict[str, Any]:
    targets = [
        {"datasource": _SOURCE, "expr": expression, "legendFormat": legend, "refId": chr(ord("A") + n)}
        for n, (expression, legend) in enumerate(panel.queries)
    ]
    curves = {"custom": {"fillOpacity": 8, "showPoints": "never"}}
    value = {"reduceOptions": {"calcs": ["lastNotNull"]}, "colorMode": "value", "graphMode": "area"}
    return {
        "id": number, "type": "stat" if panel.small else "timeseries", "title": panel.title, "description": panel.says,
        "datasource": _SOURCE, "gridPos": place, "targets": targets,
        "fieldConfig": {"defaults": {"unit": panel.unit, **({} if panel.small else curves)}, "overrides": []},
        "options": value if panel.small else {"legend": {"displayMode": "list"}, "tooltip": {"mode": "multi"}},
    }  # fmt: skip


if __name__ == "__main__":
    for dashboard in DASHBOARDS:
        (HERE / f"{dashboard.name}.json").write_text(drawn(dashboard))
