"""What a job would take, on a terminal: of `bco run SPEC --dry-run`, and of a server (`bco jobs create --dry-run`)."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from bco_ray.cli.chat import visible
from bco_ray.cli.job_view import DASH, duration, print_table, said, table_of
from bco_ray.cli.options import present
from bco_ray.config import load_spec

Found = Mapping[str, Any]
"""The fields of `pipeline.estimate.Estimate`; one that another server leaves out is a dash."""


def dry_run(spec: Path, overrides: list[str], *, as_json: bool) -> None:
    """Reckon and print; nothing is trained."""
    from bco_ray.pipeline.estimate import estimate

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # peft asks transformers by an old name
        found = estimate(load_spec(spec, overrides))
    present(found.model_dump(), show, as_json)


def show(found: Found) -> None:
    """Counts, memory and time as a table, and what to think of them."""
    table = table_of("counted" if found.get("exact") else "estimated from a sample", "")
    for name, value in (*_counts(found), *_memory(found), *_time(found)):
        table.add_row(name, value)
    table.add_row("pace", said(found.get("basis")))
    for warning in found.get("warnings") or ():
        table.add_row("hint", said(warning))
    print_table(table)


def _counts(found: Found) -> Iterator[tuple[str, str]]:
    yield "votes in the log", _number(found, "rows")
    yield "usable votes", _number(found, "usable_rows")
    yield "of these thumbs-up", _number(found, "label_rate", ".1%")
    yield "tokens per vote", _number(found, "tokens_per_row", ",.0f")
    yield "tokens per epoch", _number(found, "tokens_per_epoch")
    yield "trained tokens", _number(found, "trained_tokens")
    yield "optimizer steps", _number(found, "steps")
    yield "weights", _number(found, "parameters")
    yield "trained of them", _number(found, "trained_parameters")


def _memory(found: Found) -> Iterator[tuple[str, str]]:
    """Per worker; what is nothing is not shown."""
    for item, size in (found.get("memory") or {}).items():
        if size:
            place = "in the host's memory" if item == "host" else visible(item)
            yield f"memory per worker: {place}", _bytes(size)


def _time(found: Found) -> Iterator[tuple[str, str]]:
    seconds = found.get("seconds")
    yield "workers", _number(found, "workers")
    yield "time", DASH if seconds is None else duration(seconds)
    yield "GPU hours", _number(found, "gpu_hours", ",.2f")


def _number(found: Found, name: str, how: str = ",") -> str:
    value = found.get(name)
    return DASH if value is None else format(value, how)


def _bytes(size: float) -> str:
    return f"{size / 2**30:,.2f} GiB" if size >= 2**30 else f"{size / 2**20:,.1f} MiB"
