"""`bco keys create|list|revoke`: who may use the server, and how much of it."""

from __future__ import annotations

import getpass
import math
import os
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bco_ray.cli.options import AsJson, Storage, finish
from bco_ray.errors import SpecError

if TYPE_CHECKING:
    from bco_ray.control.keys import ApiKey, KeyStore

app = typer.Typer(
    no_args_is_help=True, help="API keys. As soon as there is one, the server answers nobody without: make an admin's."
)

STORAGE = Path("runs")
SECONDS_PER_DAY = 86400

Database = Annotated[
    str | None,
    typer.Option(
        "--database", envvar="BCO_DATABASE_URL", help="postgresql://... or sqlite:///..., if not <storage>/bco.db."
    ),
]
AtMost = Annotated[int | None, typer.Option(min=1, show_default="as many as there are")]


@app.command()
def create(
    project: Annotated[str, typer.Option("--project", help="Whose jobs, files and models it sees.")],
    name: Annotated[str, typer.Option("--name", help="What it is for.")],
    role: Annotated[
        str, typer.Option("--role", help="infer, read, submit or admin; each may all that the one before it may.")
    ],
    requests_per_minute: AtMost = None,
    running_jobs: AtMost = None,
    queued_jobs: AtMost = None,
    gpu_hours_per_month: Annotated[
        float | None, typer.Option(help="Of the jobs it asks for.", show_default="as many as there are")
    ] = None,
    upload_bytes: Annotated[
        int | None,
        typer.Option(min=1, help="To which it may fill its project's uploads.", show_default="as many as there are"),
    ] = None,
    expires_days: Annotated[int | None, typer.Option("--expires-days", min=1, show_default="never")] = None,
    storage: Storage = STORAGE,
    database: Database = None,
    as_json: AsJson = False,
) -> None:
    """Make a key. It is printed this once and kept nowhere."""
    from bco_ray.control.keys import Limits

    if gpu_hours_per_month is not None and not 0 < gpu_hours_per_month < math.inf:
        raise SpecError(f"--gpu-hours-per-month {gpu_hours_per_month:g}: say a number above 0.")
    limits = Limits(
        requests_per_minute=requests_per_minute, running_jobs=running_jobs, queued_jobs=queued_jobs,
        gpu_hours_per_month=gpu_hours_per_month, upload_bytes=upload_bytes,
    )  # fmt: skip
    expires_at = time.time() + expires_days * SECONDS_PER_DAY if expires_days else None
    key, text = _store(storage, database).create(
        project, name, role, limits=limits, expires_at=expires_at, actor=_actor()
    )
    finish({"key": text, **_facts(key)}, as_json)
    typer.echo("Keep the key now: it is not shown again.", err=True)


@app.command("list")
def list_(
    project: Annotated[str | None, typer.Option("--project", help="Only this one's.", show_default="all")] = None,
    storage: Storage = STORAGE,
    database: Database = None,
    as_json: AsJson = False,
) -> None:
    """Keys by their beginning: whose they are, what they may, since when and until when."""
    keys = _store(storage, database).list(project)
    if as_json:
        finish({"keys": [{"key": key.shown, **_facts(key)} for key in keys]}, as_json)
        return
    for key in keys:
        typer.echo(_line(key))


@app.command()
def revoke(
    key_id: Annotated[str, typer.Argument(metavar="KEY_ID", help="The 8 characters after sk-bco-.")],
    storage: Storage = STORAGE,
    database: Database = None,
    as_json: AsJson = False,
) -> None:
    """End a key for good; servers notice within 5 seconds."""
    key = _store(storage, database).revoke(key_id, _actor())
    finish({"key": key.shown, **_facts(key)}, as_json)


def _store(storage: Path, database: str | None) -> KeyStore:
    from bco_ray.control.keys import KeyStore

    return KeyStore.open(storage, database)


def _facts(key: ApiKey) -> dict[str, Any]:
    return {**vars(key), "limits": key.limits.model_dump()}


def _line(key: ApiKey) -> str:
    times = f"created {_day(key.created_at)}, expires {_day(key.expires_at)}, revoked {_day(key.revoked_at)}"
    return f"{key.shown}  {key.project}  {key.role}  {key.name}  {times}"


def _day(at: float | None) -> str:
    return "never" if at is None else datetime.fromtimestamp(at, UTC).isoformat(timespec="seconds")


def _actor() -> str:
    """Who types; a container may know its user by number only."""
    try:
        return f"cli:{getpass.getuser()}"
    except (KeyError, OSError):
        return f"cli:{os.getuid()}"
