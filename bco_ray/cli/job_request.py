"""What `bco jobs create` sends: a spec file or flags as the body of a request, and a local log as an uploaded file."""

from __future__ import annotations

import re
import time
import uuid
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime
from glob import glob
from pathlib import Path
from typing import Any

from bco_ray.cli.job_client import AwayError, JobServer, Patience
from bco_ray.cli.options import note
from bco_ray.config import load_spec, parse_spec
from bco_ray.config.load import apply_overrides
from bco_ray.config.spec import JobSpec
from bco_ray.errors import ServingError, SpecError
from bco_ray.telemetry import console

Json = dict[str, Any]

_NAMED = re.compile(r"feedback(:([0-9]+\.\.)?[0-9]*)?|file-[0-9a-f]{24}|[a-z0-9+.-]+://.*")
"""A `training_file` that the server knows by itself."""

_SEND_SECONDS = 4.0

_FROM_NOW = re.compile(r"\+([0-9]+(?:\.[0-9]+)?)([smhd])")
_UNIT_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


def request_body(path: Path | None, overrides: Sequence[str], flags: Json, hyperparameters: Json) -> Json:
    """Only what the file and the flags say, not the defaults; flags win. None: not said. Raises SpecError."""
    said, numbers = _said(flags), _said(hyperparameters)
    method = said.pop("method", None)
    body = _of_spec(load_spec(path, overrides), str(path)) if path else _of_flags(said, overrides)
    method = method or body.pop("method", {}).get("type") or ("bco" if numbers else None)
    if method:
        body["method"] = {"type": method, **({method: {"hyperparameters": numbers}} if numbers else {})}
    return {**body, **said}


def uploaded(server: JobServer, training_file: str) -> str:
    """The id of a file of this machine that is uploaded here; what the server finds by itself comes back as it is.

    Nobody means a directory of the server's by a relative path. Raises SpecError.
    """
    path = Path(training_file).expanduser()
    if _NAMED.fullmatch(training_file) or (path.is_absolute() and not path.is_file()):
        return training_file
    found = [path] if path.is_file() else [Path(one) for one in glob(training_file)]  # noqa: PTH207  takes ''
    if len(found) != 1 or not found[0].is_file():
        raise SpecError(
            f"{training_file}: here that is {len(found)} files or a directory, and a request names one file; put them "
            "into one, or name a place that the server reads (/..., s3://...)."
        )
    return _upload(server, found[0])


def send(ask: Callable[[str], Json], idempotency_key: str | None, more: str = "") -> Json:
    """The new job that `ask(key)` gives. Asked again if no answer came: by its key it is one job. Raises ServingError.

    `more`: to be said beside the key by whoever tries again.
    """
    key = idempotency_key or uuid.uuid4().hex
    try:
        return Patience(_SEND_SECONDS, note)(lambda: ask(key))
    except AwayError as error:
        again = f"--idempotency-key {key} {more}".rstrip()
        raise ServingError(f"{error} To try again and not make two jobs add: {again}") from None


def budget(hours: float | None, gpu_hours: float | None, tokens: int | None, deadline: str | None) -> Json | None:
    """None if nothing is limited. Raises SpecError."""
    until = None if deadline is None else _unix_seconds(deadline)
    return _said({"hours": hours, "gpu_hours": gpu_hours, "tokens": tokens, "deadline": until}) or None


def pairs(option: str, texts: Iterable[str]) -> dict[str, str] | None:
    """`k=v` each; None for none. Raises SpecError."""
    found = {}
    for text in texts:
        name, separator, value = text.partition("=")
        if not separator or not name:
            raise SpecError(f"{option} {text}: write it as key=value.")
        found[name] = value
    return found or None


def _upload(server: JobServer, path: Path) -> str:
    from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn

    columns = ("uploading", BarColumn(bar_width=30), DownloadColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        try:
            file = progress.open(path, "rb")
        except OSError as error:
            raise SpecError(f"{path}: cannot be read ({error.strerror}).") from None
        with file:
            made = server.upload(path.name, file)
    note(f"uploaded {path} as {made['id']}")
    return str(made["id"])


def _of_spec(spec: JobSpec, where: str) -> Json:
    """The name and `output` are the server's; the model is registered under the name it would get here.

    `evaluation` and `judge` are for `bco evaluate`.
    """
    said = spec.model_dump(mode="json", exclude_unset=True, exclude={"name", "output", "evaluation", "judge"})
    base, entries = said["model"].pop("base"), said["data"].pop("feedback")
    if len(entries) != 1:
        raise SpecError(
            f"{where}: data.feedback: a request names one log, not {len(entries)}; put them into one file, or below "
            "one place that the server reads."
        )
    loss = said.get("objective", {}).pop("loss", None)
    sections = {name: values for name, values in said.items() if values}
    body = {"model": base, "training_file": entries[0], "suffix": spec.registry_name}
    return body | ({"method": {"type": loss}} if loss else {}) | ({"spec": sections} if sections else {})


def _of_flags(said: Json, overrides: Sequence[str]) -> Json:
    """Read as a spec too, so that a wrong `--set` is told here."""
    if missing := [name for name in ("model", "training_file") if name not in said]:
        options = " and ".join(f"--{name.replace('_', '-')}" for name in missing)
        raise SpecError(f"Name a spec file, or say {options}.")
    values = {"name": "job", "model": {"base": said["model"]}, "data": {"feedback": [said["training_file"]]}}
    body = _of_spec(parse_spec(apply_overrides(values, overrides), where="the command line"), "the command line")
    del body["suffix"]
    return body


def _said(values: Json) -> Json:
    return {name: value for name, value in values.items() if value is not None}


def _unix_seconds(text: str) -> int:
    if span := _FROM_NOW.fullmatch(text):
        return int(time.time() + float(span[1]) * _UNIT_SECONDS[span[2]])
    try:
        return int(datetime.fromisoformat(text).timestamp())
    except ValueError:
        raise SpecError(f"--deadline {text}: say a time (2026-12-01T18:00, here) or from now on (+6h).") from None
