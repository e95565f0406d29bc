"""From a model reference to what the server is told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bco_ray.errors import SpecError
from bco_ray.pipeline.resolve import resolve_model
from bco_ray.serving.args import ServeArgs
from bco_ray.storage import files
from bco_ray.storage.objects import ObjectPath
from bco_ray.storage.registry import Registry


def serve_args(model: str, storage: Path, state: Path | None = None) -> ServeArgs:
    """`name` or `name@prod` follows that name's aliases; `name/3` is that version for good; a model directory is served
    as `<directory>/0`. `state`: the server's own directory. Raises ModelError; SpecError if it needs one.
    """
    storage = files.storage_directory(str(storage))
    if state is None and isinstance(storage, ObjectPath):
        raise SpecError(f"--storage: {storage} is no directory; name one for votes, keys and jobs with --state.")
    state = None if state is None else files.local_directory(str(state))
    directory, reference = resolve_model(model, storage)
    place: dict[str, Any] = {"model_dir": directory, "storage": storage, "state": state}
    if reference == directory:
        return ServeArgs(model_id=f"{files.path_of(directory).name}/0", **place)
    if reference == model:
        name, _, version = reference.partition("/")
        aliases = [f"{name}@{a}" for a, v in Registry(storage).aliases(name).items() if v == int(version)]
        return ServeArgs(model_id=reference, aliases=aliases, **place)
    return ServeArgs(follow=[reference.partition("/")[0]], storage=storage, state=state)
