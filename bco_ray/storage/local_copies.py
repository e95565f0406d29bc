"""Copies on this machine's disk of what libraries read only from there: models and their tokenizers.

Below `$BCO_CACHE` (`~/.cache/bco-ray`), by place, sizes and times: what a place holds is fetched once per machine, and
again when it has changed. Nothing there is ever the only copy; it may be removed whenever nothing runs.
"""

from __future__ import annotations

import os
from pathlib import Path, PurePosixPath

from bco_ray.errors import StorageError
from bco_ray.storage import files
from bco_ray.storage.objects import ObjectPath

CACHE_VARIABLE = "BCO_CACHE"

_WEIGHTS = {".safetensors", ".bin", ".pt", ".pth", ".gguf", ".onnx", ".h5", ".msgpack"}


def local_copy(place: str | Path, *, weights: bool = True) -> Path:
    """`place` itself if it is local; else a copy of all that is below it, or of all but a model's `weights`.

    Raises FileNotFoundError if nothing is there, OSError if the store cannot be asked, StorageError if it changes.
    """
    source = files.path_of(str(place))
    return _copied(source, weights) if isinstance(source, ObjectPath) else source


def _copied(source: ObjectPath, weights: bool) -> Path:
    there = _listing(source, weights)
    if not there:
        raise FileNotFoundError(f"{source}: there is nothing below it.")
    root = cache_directory() / files.digest([str(source), there])
    target = root / source.name
    with files.locked(root / files.LOCK):
        files.remove_leftovers(root)
        if not target.is_dir():
            with files.new_directory(target) as scratch:
                for name in there:
                    (scratch / name).parent.mkdir(parents=True, exist_ok=True)
                    (source / name).download(scratch / name)
                if _listing(source, weights) != there:
                    raise StorageError(f"{source}: it changed while it was copied. Try again.")
    return target


def _listing(source: ObjectPath, weights: bool) -> dict[str, list[int]]:
    """Name -> size and time of what is wanted."""
    found = [one for one in source.entries(recursive=True) if not one.is_directory]
    wanted = [one for one in found if weights or PurePosixPath(one.uri).suffix not in _WEIGHTS]
    names = {one.uri.removeprefix(f"{source}/"): [one.bytes, one.modified_ns] for one in wanted}
    if outside := next((name for name in names if ".." in name.split("/")), None):
        raise StorageError(f"{source}/{outside}: a name with '..' in it; rename or remove that object.")
    return names


def cache_directory() -> Path:
    """`$BCO_CACHE`, else the user's."""
    return Path(os.environ.get(CACHE_VARIABLE, "~/.cache/bco-ray")).expanduser().absolute()
