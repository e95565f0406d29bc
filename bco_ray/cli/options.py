"""What the commands share: their options, and how a result is printed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from bco_ray.telemetry import console

Spec = Annotated[Path, typer.Argument(metavar="SPEC", help="YAML spec of the job (docs/spec.md).")]
Overrides = Annotated[list[str], typer.Option("--set", metavar="a.b=value", help="Override a field of the spec.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")]


def place(value: Any) -> Path:
    """A directory, or s3:// or gs://."""
    from bco_ray.storage.files import path_of

    return path_of(str(value))


def local(value: Any) -> Path:
    """A directory of this machine's."""
    from bco_ray.storage.files import local_directory

    if "://" in str(value):
        local_directory(str(value))
    return Path(str(value))


Storage = Annotated[
    Path,
    typer.Option("--storage", parser=place, metavar="PLACE", help="As in the spec's output.storage; or s3://, gs://."),
]
State = Annotated[
    Path | None,
    typer.Option(
        "--state", parser=local, metavar="DIR", help="The server's own directory, if --storage is s3:// or gs://."
    ),
]
NONE: list[str] = []


def finish(result: dict[str, Any], as_json: bool) -> None:
    """stdout carries the result alone; bars and logs went to stderr."""
    if as_json:
        typer.echo(json.dumps(result, ensure_ascii=False))
        return
    for key, value in result.items():
        typer.echo(f"{key}: {value if isinstance(value, str | int | float) else json.dumps(value, ensure_ascii=False)}")


def present(result: dict[str, Any], show: Callable[[dict[str, Any]], None], as_json: bool) -> None:
    """For people, or as JSON."""
    if as_json:
        finish(result, as_json)
    else:
        show(result)


def note(text: str) -> None:
    """What is no result, on stderr."""
    console.print(text, style="dim", highlight=False, markup=False, soft_wrap=True)
