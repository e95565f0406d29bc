"""From a model reference to what the server is told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bco_ray.pipeline.resolve import resolve_model
from bco_ray.serving.args import ServeArgs
from bco_ray.storage import files
from bco_ray.storage.registry import Registry


def serve_args(model: str, storage: Path) -> ServeArgs:
    """`name` or `name@prod` follows that name's aliases; `name/3` is that version for good; a model directory is served
    as `<directory>/0`. Raises ModelError.
    """
    storage = files.local_directory(str(storage))
    directory, reference = resolve_model(model, storage)
    place: dict[str, Any] = {"model_dir": Path(directory), "storage": storage}
    if reference == directory:
        return ServeArgs(model_id=f"{Path(directory).name}/0", **place)
    if reference == model:
        name, _, version = reference.partition("/")
        aliases = [f"{name}@{a}" for a, v in Registry(storage).aliases(name).items() if v == int(version)]
        return ServeArgs(model_id=reference, aliases=aliases, **place)
    return ServeArgs(follow=[reference.partition("/")[0]], storage=storage)
