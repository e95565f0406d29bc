"""Jobs, events, checkpoints and logs on a terminal. Text from the server is no markup and steers nothing."""

from __future__ import annotations

import codecs
import io
import math
import sys
from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from bco_ray.cli.chat import visible
from bco_ray.errors import ServingError, SpecError

Json = dict[str, Any]

DASH = "-"
_PIPE_WIDTH = 1000
"""Columns where no terminal says how many there are: nothing is cut."""

_NEWEST = {"loss": "loss", "rewards/margins": "margin", "delta": "delta", "auc": "AUC"}
_PANELS = (
    ("loss", {"loss": "loss"}),
    ("implicit reward", {"chosen": "rewards/chosen", "rejected": "rewards/rejected", "delta": "delta"}),
    ("margin", {"chosen - rejected": "rewards/margins"}),
    ("telling the classes apart", {"AUC": "auc"}),
)


def show_jobs(page: Json) -> None:
    """One line each, the newest first."""
    table = table_of("id", "status", "model", "result", "created", "metadata")
    for job in page["data"]:
        metadata = " ".join(f"{name}={value}" for name, value in (job.get("metadata") or {}).items())
        shown = (status_of(job), job["model"], job.get("fine_tuned_model"), _time(job["created_at"]), metadata)
        table.add_row(said(job["id"]), *map(said, shown))
    print_table(table)


def show_job(job: Json) -> None:
    """What it is, how it stands, and what came of it."""
    table = table_of("", "")
    for name, value in _facts(job):
        table.add_row(name, said(value))
    print_table(table)


def show_checkpoints(page: Json) -> None:
    """The newest first."""
    table = table_of("id", "step", "made", "loss")
    for one in page["data"]:
        loss = _number((one.get("metrics") or {}).get("train_loss"))
        table.add_row(said(one["id"]), said(one["step_number"]), _time(one["created_at"]), loss)
    print_table(table)


def event_line(event: Json) -> str:
    """Time, level and message."""
    return f"{_time(event['created_at'])}  {clean(event['level']):<5}  {clean(event['message'])}"


def status_of(job: Json) -> str:
    """With how far its phase is, while it is in one."""
    details, status = job.get("status_details") or {}, clean(job["status"])
    if status not in {"queued", "running", "paused"} or details.get("percent") is None:
        return status
    return f"{status} {clean(details.get('phase'))} {details['percent']:.0f}%"


def standing(job: Json, newest: Mapping[str, Any]) -> str:
    """How far it is, in a line: what is not known is left out. `newest`: metrics of the last step told."""
    details = job.get("status_details") or {}
    parts = [status_of(job)]
    if details.get("step") is not None:
        parts.append(f"step {details['step']}/{details.get('total_steps') or '?'}")
    if details.get("eta_seconds") is not None and job["status"] == "running":
        parts.append(f"{duration(details['eta_seconds'])} left")
    return ", ".join([*parts, *_newest(newest), *troubles(job)])


def metrics_line(newest: Mapping[str, Any]) -> str:
    """Of the last step told."""
    return "  ".join(_newest(newest))


def troubles(job: Json) -> Iterator[str]:
    """What it waits for, and what is wrong."""
    details = job.get("status_details") or {}
    if job["status"] == "paused":
        yield "waiting for somebody to resume it"
    for name, words in (("waiting_for", "waiting for"), ("problem", "problem:")):
        if details.get(name):
            yield f"{words} {clean(details[name])}"


def verdict(job: Json) -> str:
    """How it ended, or what it is now."""
    error = job.get("error") or {}
    match job["status"]:
        case "succeeded":
            rest = f": {job.get('fine_tuned_model')}"
        case "failed":
            rest = f": {error.get('code')}: {error.get('message')}"
        case _:
            rest = ""
    return clean(f"{job['id']} {job['status']}{rest}")


def metrics_of(events: Iterable[Json]) -> Iterator[Json]:
    """The steps that events tell of, numbers only."""
    for event in events:
        data = event.get("data")
        if event.get("type") == "metrics" and isinstance(data, dict) and isinstance(data.get("step"), int):
            yield {name: value for name, value in data.items() if _finite(value)}


def write_log(blocks: Iterable[bytes]) -> None:
    """On stdout as they come: bytes as they are, on a terminal text in which nothing steers it."""
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    text = io.IncrementalNewlineDecoder(decoder, translate=True)
    for block in blocks:
        if sys.stdout.isatty():
            sys.stdout.write(visible(text.decode(block)))
            sys.stdout.flush()
        else:
            sys.stdout.buffer.write(block)
            sys.stdout.buffer.flush()


def require_png(path: Path | None) -> None:
    """Before anything is done. Raises SpecError."""
    if path and (path.suffix.lower() != ".png" or not path.absolute().parent.is_dir()):
        raise SpecError(f"--png {path}: name a .png file in a directory that exists.")


def draw_png(path: Path, job_id: str, rows: list[Json]) -> None:
    """Raises ServingError before the first step."""
    from bco_ray.evaluation.curves import draw_curves

    if not rows:
        raise ServingError(f"{clean(job_id)} has done no step yet: there are no curves to draw.")
    draw_curves(rows, path, title=clean(job_id), panels=_PANELS)


def clean(text: Any) -> str:
    """In one line, and nothing in it steers the terminal."""
    return " ".join(visible(str(text)).split())


def said(value: Any) -> Text:
    """For a table."""
    return Text(DASH if value is None else clean(value))


def duration(seconds: float) -> str:
    """Hours, minutes and seconds."""
    return str(timedelta(seconds=round(seconds)))


def _facts(job: Json) -> Iterator[tuple[str, Any]]:
    details, method = job.get("status_details") or {}, job.get("method") or {}
    yield from ((name, job.get(name)) for name in ("id", "model", "training_file"))
    yield "method", _pairs({"": method.get("type"), **(job.get("hyperparameters") or {})})
    yield "status", standing(job, {})
    yield "checkpoint", None if details.get("checkpoint_step") is None else f"step {details['checkpoint_step']}"
    for name in ("created_at", "started_at", "finished_at", "estimated_finish"):
        if job.get(name) is not None:
            yield name.removesuffix("_at").replace("_", " "), _time(job[name])
    for name in ("attempt", "priority", "fine_tuned_model", "trained_tokens"):
        yield name.replace("_", " "), job.get(name)
    for name in ("evaluation", "metadata", "error", "budget"):
        if job.get(name):
            yield name, _pairs(job[name])


def _pairs(values: Mapping[str, Any]) -> str:
    shown = ((name, f"{v:.5g}" if isinstance(v, float) else v) for name, v in values.items() if v is not None)
    return ", ".join(f"{name} {value}".strip() for name, value in shown)


def _newest(newest: Mapping[str, Any]) -> list[str]:
    return [f"{name} {newest[key]:.4g}" for key, name in _NEWEST.items() if newest.get(key) is not None]


def table_of(*columns: str) -> Table:
    """Without a header if no column has a name."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, show_header=any(columns), padding=(0, 2, 0, 0))
    for place, column in enumerate(columns):
        table.add_column(column, overflow="fold", no_wrap=place == 0)
    return table


def print_table(table: Table) -> None:
    """On stdout, as wide as it is."""
    terminal = Console()
    (terminal if terminal.is_terminal else Console(width=_PIPE_WIDTH)).print(table, highlight=False)


def _time(at: float | None) -> str:
    """Here."""
    return DASH if at is None else datetime.fromtimestamp(at).strftime("%Y-%m-%d %H:%M:%S")


def _finite(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _number(value: float | None) -> str:
    if value is None:
        return DASH
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"
