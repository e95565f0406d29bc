"""The commands that are built so far, and the one place where an error becomes an exit code."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from bco_ray.cli.data import app as data_app
from bco_ray.cli.jobs import app as jobs_app
from bco_ray.cli.keys import Database
from bco_ray.cli.keys import app as keys_app
from bco_ray.cli.models import app as models_app
from bco_ray.cli.nodes import app as nodes_app
from bco_ray.cli.options import NONE, AsJson, Overrides, Spec, State, Storage, finish, present
from bco_ray.config.environment import prepare_environment
from bco_ray.errors import BcoError
from bco_ray.telemetry import Phases, configure_logging, console

app = typer.Typer(
    name="bco",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Train a language model on its own thumbs-up / thumbs-down, on your own Ray cluster, and serve the result.",
)
app.add_typer(models_app, name="models")
app.add_typer(data_app, name="data")
app.add_typer(jobs_app, name="jobs")
app.add_typer(keys_app, name="keys")
app.add_typer(nodes_app, name="node")


def main() -> None:
    """Entry point of the `bco` script."""
    prepare_environment()
    configure_logging()
    try:
        app()
    except BcoError as error:
        console.print(f"[bold red]error[/] {_escape(str(error))}", highlight=False, soft_wrap=True)
        sys.exit(error.exit_code)
    except OSError as error:  # a disk or a bucket: it names the place
        console.print(f"[bold red]error[/] {_escape(str(error))}", highlight=False, soft_wrap=True)
        sys.exit(1)
    except KeyboardInterrupt:
        console.print("[bold red]error[/] interrupted.", highlight=False)
        sys.exit(130)


@app.command()
def run(
    spec: Spec,
    set_: Overrides = NONE,
    as_json: AsJson = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what it would take.")] = False,
) -> None:
    """Score, train, evaluate and register; run again after any interruption and only the rest is done."""
    from bco_ray.cli import estimate_view, runs

    if dry_run:
        estimate_view.dry_run(spec, set_, as_json=as_json)
    else:
        finish(runs.run(spec, set_), as_json)


@app.command()
def score(spec: Spec, set_: Overrides = NONE, as_json: AsJson = False) -> None:
    """Only the first half: feedback log to scored shards."""
    from bco_ray.cli import runs

    finish(runs.score(spec, set_), as_json)


@app.command()
def train(
    spec: Spec,
    set_: Overrides = NONE,
    as_json: AsJson = False,
    resume: Annotated[bool, typer.Option("--resume", help="Continue an interrupted run.")] = False,
) -> None:
    """Only the second half: scored shards (made if missing) to a trained model directory."""
    from bco_ray.cli import runs

    finish(runs.train(spec, set_, resume=resume), as_json)


@app.command()
def evaluate(
    spec: Spec,
    model: Annotated[str, typer.Option("--model", metavar="REF", help="The version: name/3, name@candidate, or name.")],
    against: Annotated[
        list[str], typer.Option("--against", metavar="REF", help="Compare with these, not with the base and prod.")
    ] = NONE,
    set_: Overrides = NONE,
    as_json: AsJson = False,
) -> None:
    """Held-out votes, answers before and after, win rates, must-pass prompts, and the gate (docs/evaluation.md)."""
    from bco_ray.cli import evaluation_view, runs

    present(runs.evaluate(spec, set_, model, against), evaluation_view.show, as_json)


@app.command()
def demo(
    out: Annotated[Path, typer.Option("--out", help="Where everything is written.")] = Path("runs/demo"),
    seed: Annotated[int, typer.Option(help="Another seed is another world, model and log.")] = 0,
    serve: Annotated[bool, typer.Option("--serve", help="Keep the server up at the end (Ctrl-C stops it).")] = False,
    as_json: AsJson = False,
) -> None:
    """The whole loop on this machine: base model, votes, training, serving, new votes, a second round."""
    from bco_ray.demo.loop import run_demo

    summary = run_demo(out, seed=seed, keep_serving=serve, phases=Phases())
    if as_json:
        finish(summary, as_json)


@app.command()
def serve(
    what: Annotated[
        str, typer.Argument(metavar="[SPEC|MODEL]", help="A spec, name/3, name@prod, name, or a model directory.")
    ] = "",
    storage: Storage = Path("runs"),
    state: State = None,
    host: Annotated[str, typer.Option(help="Loopback only, until there are API keys (bco keys).")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port of the OpenAI-compatible API.", min=1, max=65535)] = 8000,
    database: Database = None,
    allow: Annotated[
        list[str],
        typer.Option("--allow", metavar="PLACE", help="A directory or URI that jobs may name; more than one."),
    ] = NONE,
) -> None:
    """Serve a model over HTTP and log its answers and their thumbs. Ctrl-C stops it."""
    from bco_ray.cli import server

    model, storage = server.what_to_serve(what, storage)
    server.serve(model, storage, state, host=host, port=port, database=database, allow=allow)


@app.command()
def chat(
    model: Annotated[str, typer.Option("--model", metavar="REF", help="name, name@prod or name/3.")] = "",
    url: Annotated[str, typer.Option("--url", envvar="BCO_BASE_URL", help="The server.")] = "http://127.0.0.1:8000",
    system: Annotated[str, typer.Option("--system", help="A system message before the conversation.")] = "",
    temperature: Annotated[float | None, typer.Option(help="0 takes the likeliest token.", min=0, max=2)] = None,
    top_p: Annotated[float | None, typer.Option(help="Likeliest tokens up to this share.", min=0, max=1)] = None,
    max_tokens: Annotated[int | None, typer.Option(help="Of one answer.", min=1)] = None,
    storage: Storage = Path("runs"),
) -> None:
    """Talk to a served model and vote on its answers; /help says how. $BCO_API_KEY is sent if it is set."""
    from bco_ray.cli.chat import run_chat

    sampling = {"temperature": temperature, "top_p": top_p, "max_tokens": max_tokens}
    run_chat(url, model, system, {k: v for k, v in sampling.items() if v is not None}, storage)


@app.command()
def env(as_json: AsJson = False) -> None:
    """Versions and machine, to paste into a bug report."""
    from bco_ray.cli.environment import report

    finish(report(), as_json)


def _escape(text: str) -> str:
    from rich.markup import escape

    return escape(text)
