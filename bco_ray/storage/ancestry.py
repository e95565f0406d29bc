"""What a model was trained from, and that from: versions, copies of them, and what runs have left."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bco_ray.config import load_spec
from bco_ray.errors import SpecError
from bco_ray.storage import files
from bco_ray.storage.objects import is_uri
from bco_ray.storage.registry import LINEAGE, Registry

Lineage = dict[str, Any]


def ancestry(storage: Path, model: str) -> Iterator[tuple[str, Lineage | None]]:
    """Name and lineage of a model, of what it was trained from, and so on to the first.

    `model`: `bot/3`, or a directory: of a version, of an export, or of the model in a run's directory. None: gone, or
    not to be read. {}: not trained here, as far as anybody knows; that ends it.
    """
    registry, seen = Registry(storage), set[str]()
    while model and model not in seen:
        seen.add(model)
        name, lineage = _lineage(registry, storage, model)
        if name != model and name in seen:
            return
        seen.add(name)
        yield name, lineage
        model = str((lineage or {}).get("parent") or "")


def _lineage(registry: Registry, storage: Path, model: str) -> tuple[str, Lineage | None]:
    inside = Path(model).is_relative_to(registry.root.resolve())
    reference = str(Path(model).relative_to(registry.root.resolve())) if inside else model
    name, _, number = reference.rpartition("/")
    if name and "/" not in name and number.isdigit() and int(number) in registry.versions(name):
        version = registry.get(name, int(number))
        return version.reference, version.lineage
    return model, _of_directory(storage, model)


def _of_directory(storage: Path, model: str) -> Lineage | None:
    if not is_uri(model) and not Path(model).is_absolute():
        return None
    place = files.path_of(model)
    if (place / LINEAGE).is_file():
        found: Lineage = files.read_json(place / LINEAGE)
        return found
    spec = place.parent / "spec.resolved.yaml"
    if not spec.is_file():
        return None if place.is_relative_to((storage / "runs").resolve()) else {}
    try:
        asked = load_spec(spec)
    except SpecError:
        return None
    return {
        "run": place.parent.name, "parent": asked.model.base, "validation": asked.data.validation,
        "feedback": asked.data.feedback,
    }  # fmt: skip
