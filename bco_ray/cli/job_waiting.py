"""A job that was asked for, steered or looked at: followed on the terminal until it is so, and the exit code for it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import typer

from bco_ray.cli.job_client import FOLLOW_SECONDS, JobServer, Patience
from bco_ray.cli.job_follow import Over, ended, follow
from bco_ray.cli.job_live import Screen
from bco_ray.cli.job_options import SERVER
from bco_ray.cli.job_view import clean, draw_png, verdict
from bco_ray.cli.options import finish, note, present
from bco_ray.telemetry import console

Json = dict[str, Any]


def made(server: JobServer, job: Json, *, wait: bool, png: Path | None, as_json: bool) -> None:
    """The id of a new job on stdout at once; if it is waited for, its JSON only at the end."""
    if not (wait and as_json):
        present(job, lambda it: typer.echo(it["id"]), as_json)
    if not wait:
        note(f"{job['status']}. Follow it with: {_look_again(server.url, job['id'])}")
        return
    job = to_the_end(server, job["id"], png)
    if as_json:
        finish(job, as_json)
    exit_unless(job["status"] == "succeeded")


def steered(server: JobServer, job: Json, wanted: str, over: Over | None, as_json: bool) -> None:
    """`over`: what to wait for, if for anything. Exit 1 if the job then is not `wanted` and did not succeed either."""
    if over:
        job, _ = _followed(server, job["id"], over)
    present(job, lambda it: typer.echo(verdict(it)), as_json)
    exit_unless(not over or job["status"] == wanted or (wanted == "running" and job["status"] == "succeeded"))


def to_the_end(server: JobServer, job_id: str, png: Path | None) -> Json:
    """The job as it ended, with its curves in `png`."""
    job, rows = _followed(server, job_id, ended)
    if png and rows:
        draw_png(png, job_id, rows)
    elif png:
        note(f"{png} is not drawn: the job did no step.")
    return job


@contextmanager
def goes_on(url: str, job_id: str) -> Iterator[None]:
    """Ctrl-C ends the looking alone."""
    try:
        yield
    except KeyboardInterrupt:
        note(f"The job goes on. Look again with: {_look_again(url, job_id)}")
        raise typer.Exit(130) from None


def exit_unless(well: bool) -> None:
    """Exit code 1: the work failed."""
    if not well:
        raise typer.Exit(1)


def _followed(server: JobServer, job_id: str, over: Over) -> tuple[Json, list[Json]]:
    """The job when it is over, and the steps it told of."""
    with goes_on(server.url, job_id), Screen(console) as screen:
        job = follow(server, job_id, over, screen.show, Patience(FOLLOW_SECONDS, screen.say))
    note(verdict(job))
    return job, screen.rows


def _look_again(url: str, job_id: str) -> str:
    known = os.environ.get("BCO_BASE_URL", SERVER).rstrip("/").removesuffix("/v1")
    return f"bco jobs get {clean(job_id)} --watch" + ("" if known == url else f" --url {url}")
