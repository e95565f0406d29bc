"""`bco run SPEC --dry-run`: what a job would take, on a terminal or as JSON."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from bco_ray.cli.options import finish
from bco_ray.config import load_spec
from bco_ray.pipeline.estimate import Estimate, estimate
from bco_ray.pipeline.printable import printable
from bco_ray.telemetry import console


def dry_run(spec: Path, overrides: list[str], *, as_json: bool) -> None:
    """Reckon and print; nothing is trained."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # peft asks transformers by an old name
        found = estimate(load_spec(spec, overrides))
    if as_json:
        finish(found.model_dump(), as_json)
    else:
        show(found, console)


def show(found: Estimate, console: Console) -> None:
    """Counts, memory and time as a table, and what to think of them."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, padding=(0, 2, 0, 0))
    table.add_column("counted" if found.exact else "estimated from a sample")
    table.add_column("", justify="right")
    for name, value in (*_counts(found), *_memory(found), *_time(found)):
        table.add_row(name, value)
    console.print(table, highlight=False)
    console.print(Text(f"pace: {printable(found.basis, 2 * len(found.basis))}"), highlight=False, soft_wrap=True)
    for warning in found.warnings:
        text = Text.assemble(("hint: ", "yellow"), printable(warning, 2 * len(warning)))
        console.print(text, highlight=False, soft_wrap=True)


def _counts(found: Estimate) -> Iterator[tuple[str, str]]:
    yield "votes in the log", f"{found.rows:,}"
    yield "usable votes", f"{found.usable_rows:,}"
    yield "of these thumbs-up", "-" if found.label_rate is None else f"{found.label_rate:.1%}"
    yield "tokens per vote", "-" if found.tokens_per_row is None else f"{found.tokens_per_row:,.0f}"
    yield "tokens per epoch", f"{found.tokens_per_epoch:,}"
    yield "trained tokens", f"{found.trained_tokens:,}"
    yield "optimizer steps", f"{found.steps:,}"
    yield "weights, trained of them", f"{found.parameters:,}, {found.trained_parameters:,}"


def _memory(found: Estimate) -> Iterator[tuple[str, str]]:
    """Per worker; what is nothing is not shown."""
    for item, size in found.memory.items():
        if size:
            place = "in the host's memory" if item == "host" else item
            yield f"memory per worker: {place}", _bytes(size)


def _time(found: Estimate) -> Iterator[tuple[str, str]]:
    yield "workers", f"{found.workers:,}"
    yield "time", "-" if found.seconds is None else str(timedelta(seconds=round(found.seconds)))
    yield "GPU hours", "-" if found.gpu_hours is None else f"{found.gpu_hours:,.2f}"


def _bytes(size: int) -> str:
    return f"{size / 2**30:,.2f} GiB" if size >= 2**30 else f"{size / 2**20:,.1f} MiB"
