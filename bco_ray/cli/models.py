"""`bco models list|show|promote|rollback|canary|export`: what is registered, and what its names mean."""

from __future__ import annotations

import getpass
import os
from dataclasses import asdict
from pathlib import Path
from types import EllipsisType
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bco_ray.cli.options import AsJson, Storage, finish
from bco_ray.errors import SpecError

if TYPE_CHECKING:
    from bco_ray.storage.registry import Registry

app = typer.Typer(no_args_is_help=True, help="The model registry: versions, aliases, canaries.")

STORAGE = Path("runs")

Reference = Annotated[str, typer.Argument(metavar="REF", help="name/3, name@prod, or name.")]
Name = Annotated[str, typer.Argument(metavar="NAME", help="A registered name, without a version.")]
Alias = Annotated[str, typer.Option("--alias", help="The alias to move.")]
Expected = Annotated[
    int | None, typer.Option("--expected", help="Only if the alias is at this version now (0: not set yet).", min=0)
]


@app.command("list")
def list_(storage: Storage = STORAGE, as_json: AsJson = False) -> None:
    """Names, their versions, and what their aliases and canaries mean."""
    registry = _registry(storage)
    finish(
        {name: {"versions": registry.versions(name), **_meaning(registry, name)} for name in registry.names()}, as_json
    )


@app.command()
def show(
    reference: Reference,
    storage: Storage = STORAGE,
    verify: Annotated[bool, typer.Option("--verify", help="Read all files and compare their digests.")] = False,
    as_json: AsJson = False,
) -> None:
    """Where a version is, what it was made from, and what was done to its name's aliases."""
    registry = _registry(storage)
    version = registry.resolve(reference)
    result: dict[str, Any] = {
        "model": version.reference,
        "directory": str(version.directory),
        **_meaning(registry, version.name),
        "trial": _trial(registry, version.name, storage),
        "gate": _gate(registry, version.name, version.version),
        "evaluations": [str(place) for place in registry.evaluations(version.name).places(version.version)],
        "history": registry.history(version.name),
        "lineage": version.lineage,
    }
    if verify:
        checked = registry.verify(version.name, version.version)
        result["files"] = "as registered" if checked else "unknown: registered before digests were kept"
    finish(result, as_json)


@app.command()
def promote(
    reference: Reference,
    alias: Alias = "prod",
    expected: Expected = None,
    force: Annotated[
        bool, typer.Option("--force", help="Even if it does not pass its gate; the history shows it.")
    ] = False,
    storage: Storage = STORAGE,
    as_json: AsJson = False,
) -> None:
    """Point an alias (prod) at a version; servers that follow the name switch once it has proved to work.

    A version with a gate must pass it to become prod: exit 1 with all reasons if it does not. So does one without a
    gate where what is live has one.
    """
    registry = _registry(storage)
    version = registry.resolve(reference)
    was = registry.promote(version.name, version.version, alias, _condition(expected), force=force, by=_user())
    finish({"model": version.reference, "alias": f"{version.name}@{alias}", "was": was}, as_json)
    typer.echo("Servers that follow it switch once it has proved to work; if it does not, /readyz says why.", err=True)


@app.command()
def rollback(
    name: Name, alias: Alias = "prod", expected: Expected = None, storage: Storage = STORAGE, as_json: AsJson = False
) -> None:
    """Take back an alias's last move; once more takes back the one before."""
    version, was = _registry(storage).rollback(name, alias, _condition(expected))
    finish({"model": f"{name}/{version}", "alias": f"{name}@{alias}", "was": was}, as_json)


@app.command()
def canary(
    name: Name,
    percent: Annotated[str, typer.Argument(metavar="PERCENT|off", help="Of the requests that say the bare name.")],
    storage: Storage = STORAGE,
    as_json: AsJson = False,
) -> None:
    """Let the version that name@candidate points at answer a share of the name's requests."""
    registry = _registry(storage)
    registry.set_canary(name, _percent(percent))
    finish(_meaning(registry, name), as_json)


@app.command()
def export(
    reference: Reference,
    out: Annotated[Path, typer.Option("--out", help="A directory that does not exist yet.")],
    merge: Annotated[
        bool, typer.Option("--merge", help="Add an adapter to its base: one whole float32 model.")
    ] = False,
    storage: Storage = STORAGE,
    as_json: AsJson = False,
) -> None:
    """Copy a version out of the registry, as a directory that transformers, vLLM and others read."""
    from bco_ray.cli.exporting import export_version

    registry = _registry(storage)
    version = registry.resolve(reference)
    export_version(registry, version, out, merge=merge)
    finish({"model": version.reference, "directory": str(out)}, as_json)


def _meaning(registry: Registry, name: str) -> dict[str, Any]:
    state = registry.state(name)
    return {"aliases": state.aliases, "canary": asdict(state.canary) if state.canary else None}


def _trial(registry: Registry, name: str, storage: Path) -> dict[str, Any] | None:
    """Thumbs on a canary and on prod since it began."""
    from bco_ray.storage.database import DATABASE
    from bco_ray.storage.feedback_log import FeedbackLog
    from bco_ray.storage.trials import Trials

    if not registry.state(name).percent or not (storage / DATABASE).is_file():
        return None
    trial = Trials(registry, FeedbackLog.open(storage).engine).of(name)
    return trial.as_json() if trial else None


def _gate(registry: Registry, name: str, version: int) -> str | list[str]:
    """`none`, `passes`, or the reasons."""
    reasons = registry.gates(name).refusals(version)
    return "none" if reasons is None else reasons or "passes"


def _condition(expected: int | None) -> int | EllipsisType | None:
    """As the registry takes `--expected`."""
    return ... if expected is None else expected or None


def _user() -> str:
    """Who is at the terminal, as the operating system calls them."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user without a name
        return f"uid {os.getuid()}"


def _percent(text: str) -> float:
    try:
        percent = 0 if text == "off" else float(text.removesuffix("%"))
    except ValueError:
        percent = -1
    if not 0 <= percent <= 100:
        raise SpecError(f"{text}: say how many percent of the traffic, 0 to 100, or off.")
    return percent


def _registry(storage: Path) -> Registry:
    from bco_ray.storage.registry import Registry

    return Registry(storage)
