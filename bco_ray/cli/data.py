"""`bco data check|import|report|erase`: logs and a spec to results, and what is printed of them."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

import typer

from bco_ray.cli.options import NONE, AsJson, Overrides, Spec, State, Storage, finish, place
from bco_ray.telemetry import Phases, console

app = typer.Typer(no_args_is_help=True, help="Feedback logs: check, import, report, erase.")

Logs = Annotated[list[str], typer.Argument(metavar="LOG...", help="Paths, directories, globs, s3:// gs:// hf:// URIs.")]
FormatName = Annotated[str, typer.Option("--format", help="The importer; auto detects it file by file.")]


@app.command()
def check(
    logs: Logs,
    format_: FormatName = "auto",
    set_: Overrides = NONE,
    storage: Annotated[
        Path | None,
        typer.Option("--storage", parser=place, metavar="PLACE", help="Keep what was read here."),
    ] = None,
    sft: Annotated[bool, typer.Option("--sft", help="For objective.loss: sft: thumbs-up alone will do.")] = False,
    page: Annotated[Path | None, typer.Option("--report", help="Write report.html, .json and .png here.")] = None,
    as_json: AsJson = False,
) -> None:
    """Is this log good for training? No model, no GPU: counts, drops, labels, lengths, voters. Exit 1 if unusable."""
    from bco_ray.cli.data_view import show_check
    from bco_ray.pipeline.data import check_log
    from bco_ray.pipeline.report import DataReport, write_report

    with tempfile.TemporaryDirectory(prefix="bco-check-") as scratch:
        result = check_log(_data(logs, format_, set_), storage or Path(scratch), Phases(), ups_suffice=sft)
    if as_json:
        finish(result.as_json(), as_json)
    else:
        show_check(result, console)
    if page:
        console.print(f"[dim]{write_report(DataReport(result), page)['html']}[/]", highlight=False, soft_wrap=True)
    if not result.verdict.usable:
        raise typer.Exit(1)


@app.command("import")
def import_(
    logs: Logs,
    out: Annotated[str, typer.Option("--out", help="Directory or URI of the canonical log.")],
    format_: FormatName = "auto",
    set_: Overrides = NONE,
    storage: Storage = Path("runs"),
    as_json: AsJson = False,
) -> None:
    """Any supported log to the canonical one (Parquet), people as pseudonyms; refused rows stay in --storage."""
    from bco_ray.pipeline.data import import_log

    finish(import_log(_data(logs, format_, set_), storage, out, Phases()), as_json)


@app.command()
def report(spec: Spec, set_: Overrides = NONE, as_json: AsJson = False) -> None:
    """The check, and what the model says: prompt shift, effective sample size, token lengths; HTML, JSON and PNG."""
    from bco_ray.cli.data_view import show_check
    from bco_ray.cli.runs import resolve_spec
    from bco_ray.pipeline.cluster import cluster_for
    from bco_ray.pipeline.data import report_log

    job = resolve_spec(spec, set_)
    with cluster_for(job):
        result, paths = report_log(job, Phases())
    if not as_json:
        show_check(result.check, console, result.model_hints())
    finish({**(result.as_json() if as_json else {}), **{name: str(path) for name, path in paths.items()}}, as_json)


@app.command()
def erase(
    user: Annotated[list[str], typer.Option("--user", help="A person, as your product names them.")] = NONE,
    id_: Annotated[list[str], typer.Option("--id", help="One vote.")] = NONE,
    storage: Storage = Path("runs"),
    state: State = None,
    as_json: AsJson = False,
) -> None:
    """Remove a person's or single votes from log, records and scored shards; print the models trained on them."""
    from bco_ray.pipeline.erase import erase_votes

    finish(erase_votes(storage, users=user, ids=id_, phases=Phases(), state=state), as_json)


def _data(logs: Iterable[str], format_: str, overrides: Iterable[str]) -> Any:
    from bco_ray.config import parse_data

    return parse_data({"feedback": list(logs), "format": format_}, overrides)
