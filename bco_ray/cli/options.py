"""What the commands share: their options, and how a result is printed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

Spec = Annotated[Path, typer.Argument(metavar="SPEC", help="YAML spec of the job (docs/spec.md).")]
Overrides = Annotated[list[str], typer.Option("--set", metavar="a.b=value", help="Override a field of the spec.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")]
Storage = Annotated[Path, typer.Option("--storage", help="The storage directory (output.storage of the spec).")]
NONE: list[str] = []


def finish(result: dict[str, Any], as_json: bool) -> None:
    """stdout carries the result alone; bars and logs went to stderr."""
    if as_json:
        typer.echo(json.dumps(result, ensure_ascii=False))
        return
    for key, value in result.items():
        typer.echo(f"{key}: {value if isinstance(value, str | int | float) else json.dumps(value, ensure_ascii=False)}")
