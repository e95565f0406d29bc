"""`bco models export`: a version as a directory of its own, checked on the way out."""

from __future__ import annotations

import shutil
from pathlib import Path

from bco_ray.errors import SpecError
from bco_ray.storage import files
from bco_ray.storage.local_copies import local_copy
from bco_ray.storage.registry import ModelVersion, Registry


def export_version(registry: Registry, version: ModelVersion, out: Path, *, merge: bool) -> None:
    """`out` is there once it is whole, with the card of the last evaluation.

    Raises SpecError if it exists, ModelError if the version is damaged.
    """
    if out.exists():
        raise SpecError(f"--out: {out} exists; name a directory that does not.")
    registry.verify(version.name, version.version)
    with files.new_directory(out.absolute()) as scratch:
        directory = local_copy(version.directory)
        if merge:
            _merge(directory, scratch)
        else:
            shutil.copytree(directory, scratch, dirs_exist_ok=True)
        registry.evaluations(version.name).copy_card(version.version, scratch)


def _merge(adapter: Path, scratch: Path) -> None:
    import torch

    from bco_ray.models.loading import export_model, is_adapter, load_policy

    if not is_adapter(adapter):
        raise SpecError(f"--merge: {adapter} is a whole model already; leave it out.")
    lm = load_policy(adapter, None, dtype=torch.float32)
    export_model(lm, scratch, lm.state_dict(), tokenizer_from=adapter)
    shutil.copy(adapter / "lineage.json", scratch)
