"""`bco jobs`: training jobs of a server, over HTTP. What it costs, how it goes, and what came of it."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bco_ray.cli import job_options as option
from bco_ray.cli.options import NONE, AsJson, Overrides, finish, note, present

if TYPE_CHECKING:
    from bco_ray.cli.job_client import JobServer, Patience

Json = dict[str, Any]

app = typer.Typer(no_args_is_help=True, help="Training jobs of a server ($BCO_BASE_URL, $BCO_API_KEY): docs/jobs.md.")

_SHOWN = 20


@app.command()
def create(
    spec: option.SpecFile = None,
    set_: Overrides = NONE,
    model: option.Model = None,
    training_file: option.TrainingFile = None,
    method: option.Method = None,
    suffix: option.Suffix = None,
    n_epochs: option.Epochs = None,
    batch_size: option.BatchSize = None,
    learning_rate: option.LearningRate = None,
    beta: option.Beta = None,
    seed: option.Seed = None,
    priority: option.Priority = None,
    metadata: option.Metadata = NONE,
    idempotency_key: option.IdempotencyKey = None,
    budget_hours: option.Hours = None,
    budget_gpu_hours: option.GpuHours = None,
    budget_tokens: option.Tokens = None,
    deadline: option.Deadline = None,
    dry_run: option.DryRun = False,
    wait: option.Wait = False,
    png: option.Png = None,
    url: option.Url = option.SERVER,
    as_json: AsJson = False,
) -> None:
    """Ask for a job: a spec file, or a model and a log; flags win over the file. Prints its id."""
    from bco_ray.cli import estimate_view, job_request, job_view, job_waiting

    job_view.require_png(png)
    limits = job_request.budget(budget_hours, budget_gpu_hours, budget_tokens, deadline)
    flags = {
        "model": model, "training_file": training_file, "method": method, "suffix": suffix, "seed": seed,
        "priority": priority, "metadata": job_request.pairs("--metadata", metadata), "budget": limits,
    }  # fmt: skip
    numbers = {"n_epochs": n_epochs, "batch_size": batch_size, "learning_rate": learning_rate, "beta": beta}
    body, server = job_request.request_body(spec, set_, flags, numbers), _server(url)
    body["training_file"] = job_request.uploaded(server, body["training_file"])
    if dry_run:
        present(server.estimate(body), estimate_view.show, as_json)
        return
    again = f"--training-file {body['training_file']}"  # an upload would be another file, and so another request
    job = job_request.send(lambda key: server.create(body, key), idempotency_key, again)
    job_waiting.made(server, job, wait=wait, png=png, as_json=as_json)


@app.command("list")
def list_(
    limit: Annotated[int, typer.Option("--limit", min=1, max=100)] = _SHOWN,
    metadata: option.Metadata = NONE,
    after: Annotated[str | None, typer.Option("--after", metavar="ID", help="Those older than this one.")] = None,
    url: option.Url = option.SERVER,
    as_json: AsJson = False,
) -> None:
    """The newest first."""
    from bco_ray.cli import job_request, job_view

    query = {"limit": limit, "after": after, "metadata": job_request.pairs("--metadata", metadata)}
    page = _server(url).jobs(query)
    present(page, job_view.show_jobs, as_json)
    if page["has_more"]:
        note(f"There are more: --after {job_view.clean(page['data'][-1]['id'])}")


@app.command()
def get(
    job_id: option.Id,
    wait: option.Watch = False,
    png: option.Png = None,
    url: option.Url = option.SERVER,
    as_json: AsJson = False,
) -> None:
    """How it stands, and what came of it."""
    from bco_ray.cli import job_follow, job_view, job_waiting

    job_view.require_png(png)
    server = _server(url)
    job = server.job(job_id)
    if wait:
        job = job_waiting.to_the_end(server, job_id, png)
    elif png:
        job_view.draw_png(png, job_id, list(job_view.metrics_of(job_follow.Events(server, job_id).look())))
    present(job, job_view.show_job, as_json)
    if wait:
        job_waiting.exit_unless(job["status"] == "succeeded")


@app.command()
def cancel(
    job_id: option.Id, wait: option.Settled = False, url: option.Url = option.SERVER, as_json: AsJson = False
) -> None:
    """End it for good, with a checkpoint; --wait: until the cluster is free of it."""
    from bco_ray.cli import job_follow, job_waiting

    server, over = _server(url), job_follow.off_cluster if wait else None
    job_waiting.steered(server, server.steer(job_id, "cancel"), "cancelled", over, as_json)


@app.command()
def pause(
    job_id: option.Id, wait: option.Settled = False, url: option.Url = option.SERVER, as_json: AsJson = False
) -> None:
    """Put it aside, with a checkpoint; --wait: until the cluster is free of it."""
    from bco_ray.cli import job_follow, job_waiting

    server, over = _server(url), job_follow.off_cluster if wait else None
    job_waiting.steered(server, server.steer(job_id, "pause"), "paused", over, as_json)


@app.command()
def resume(
    job_id: option.Id, wait: option.Settled = False, url: option.Url = option.SERVER, as_json: AsJson = False
) -> None:
    """Take it up again from its newest checkpoint; --wait: until it runs."""
    from bco_ray.cli import job_follow, job_waiting

    server, over = _server(url), job_follow.begun if wait else None
    job_waiting.steered(server, server.steer(job_id, "resume"), "running", over, as_json)


@app.command()
def retry(
    job_id: option.Id,
    step: Annotated[int | None, typer.Option("--step", min=1, help="Of the checkpoint to go on from.")] = None,
    metadata: option.Metadata = NONE,
    budget_hours: option.Hours = None,
    budget_gpu_hours: option.GpuHours = None,
    budget_tokens: option.Tokens = None,
    deadline: option.Deadline = None,
    idempotency_key: option.IdempotencyKey = None,
    wait: option.Wait = False,
    png: option.Png = None,
    url: option.Url = option.SERVER,
    as_json: AsJson = False,
) -> None:
    """The same once more from its newest checkpoint, or that of --step, as a new job. Prints its id."""
    from bco_ray.cli import job_request, job_view, job_waiting

    job_view.require_png(png)
    limits = job_request.budget(budget_hours, budget_gpu_hours, budget_tokens, deadline)
    body = {"step": step, "metadata": job_request.pairs("--metadata", metadata), "budget": limits}
    server = _server(url)
    said = {name: value for name, value in body.items() if value is not None}
    job = job_request.send(lambda key: server.retry(job_id, said, key), idempotency_key)
    job_waiting.made(server, job, wait=wait, png=png, as_json=as_json)


@app.command()
def events(
    job_id: option.Id,
    follow: option.Follow = False,
    all_: Annotated[bool, typer.Option("--all", help=f"From the first on; else the last {_SHOWN}.")] = False,
    url: option.Url = option.SERVER,
    as_json: AsJson = False,
) -> None:
    """What happened, oldest first. --json: the list as it came, newest first; with --follow one object a line."""
    from bco_ray.cli import job_follow, job_waiting

    server = _server(url)
    if as_json and not follow:
        finish(job_follow.all_events(server, job_id) if all_ else server.events(job_id, limit=_SHOWN), as_json)
        return
    seen = job_follow.Events(server, job_id)
    _say_events(seen.look() if all_ else seen.latest(_SHOWN), as_json)
    if follow:
        with job_waiting.goes_on(server.url, job_id):
            for event in job_follow.follow_events(server, job_id, seen, _patience()):
                _say_events([event], as_json)


@app.command()
def logs(job_id: option.Id, follow: option.Follow = False, url: option.Url = option.SERVER) -> None:
    """All that its processes printed: as it is into a file or pipe, without what steers a terminal onto one."""
    from bco_ray.cli import job_follow, job_view, job_waiting

    server = _server(url)
    server.job(job_id)
    blocks = job_follow.follow_log(server, job_id, _patience()) if follow else server.log(job_id, 0, follow=False)
    with job_waiting.goes_on(server.url, job_id):
        job_view.write_log(blocks)


@app.command()
def checkpoints(job_id: option.Id, url: option.Url = option.SERVER, as_json: AsJson = False) -> None:
    """Those that are kept, the newest first."""
    from bco_ray.cli.job_view import show_checkpoints

    present(_server(url).checkpoints(job_id), show_checkpoints, as_json)


def _server(url: str) -> JobServer:
    from bco_ray.cli.job_client import JobServer

    return JobServer(url, os.environ.get("BCO_API_KEY", ""))


def _patience() -> Patience:
    from bco_ray.cli.job_client import FOLLOW_SECONDS, Patience

    return Patience(FOLLOW_SECONDS, note)


def _say_events(told: list[Json], as_json: bool) -> None:
    from bco_ray.cli.job_view import event_line

    for event in told:
        typer.echo(json.dumps(event, ensure_ascii=False) if as_json else event_line(event))
