"""What a model version was trained from, and that from: the chain that `parent` in each lineage makes."""

from __future__ import annotations

from pathlib import Path

from bco_ray.storage.registry import ModelVersion, Registry


def ancestry(registry: Registry, reference: str) -> list[ModelVersion]:
    """The version called `reference` (`bot/3`, or its directory), its parent, and so on to the first; [] if it is no
    version. A parent that is gone, or never was one, ends it.
    """
    found: list[ModelVersion] = []
    while (version := _version(registry, reference)) and version.reference not in {one.reference for one in found}:
        found.append(version)
        reference = str(version.lineage.get("parent", ""))
    return found


def _version(registry: Registry, reference: str) -> ModelVersion | None:
    inside = Path(reference).is_relative_to(registry.root.resolve())
    name, _, number = (str(Path(reference).relative_to(registry.root.resolve())) if inside else reference).rpartition(
        "/"
    )
    if not (name and "/" not in name and number.isdigit() and int(number) in registry.versions(name)):
        return None
    return registry.get(name, int(number))
