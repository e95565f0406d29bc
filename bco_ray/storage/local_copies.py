"""Copies on this machine's disk of what libraries read only from there: models and their tokenizers.

Below `$BCO_CACHE` (`~/.cache/bco-ray`), by content: what a place holds is fetched once per machine, and again when it
has changed. Nothing there is ever the only copy; it may be removed whenever nothing runs.
"""

from __future__ import annotations

import os
from pathlib import Path

from bco_ray.storage import files
from bco_ray.storage.objects import ObjectPath

CACHE_VARIABLE = "BCO_CACHE"

_WEIGHTS = {".safetensors", ".bin", ".pt"}


def local_copy(place: str | Path, *, weights: bool = True) -> Path:
    """`place` itself if it is local; else a copy of all that is below it, or of all but a model's `weights`.

    Raises FileNotFoundError if nothing is there, OSError if the store cannot be asked.
    """
    source = files.path_of(str(place))
    return _copied(source, weights) if isinstance(source, ObjectPath) else source


def _copied(source: ObjectPath, weights: bool) -> Path:
    wanted = (path for path in source.objects() if weights or path.suffix not in _WEIGHTS)
    there = {path.relative_to(source).as_posix(): path for path in wanted}
    if not there:
        raise FileNotFoundError(f"{source}: there is nothing below it.")
    stats = {name: path.stat() for name, path in there.items()}
    content = [str(source), [[name, stat.st_size, stat.st_mtime] for name, stat in stats.items()]]
    root = cache_directory() / files.digest(content)
    target = root / source.name
    with files.locked(root / files.LOCK):
        if not target.is_dir():
            with files.new_directory(target) as scratch:
                for name, path in there.items():
                    (scratch / name).parent.mkdir(parents=True, exist_ok=True)
                    path.download(scratch / name)
    return target


def cache_directory() -> Path:
    """`$BCO_CACHE`, else the user's."""
    return Path(os.environ.get(CACHE_VARIABLE, "~/.cache/bco-ray")).expanduser().absolute()
