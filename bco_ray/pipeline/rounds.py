"""What one round has to do with those before it: the votes it mixes in, and the reference it keeps."""

from __future__ import annotations

from pathlib import Path

from bco_ray.config.rounds import RoundsSpec
from bco_ray.config.spec import KEPT
from bco_ray.errors import SpecError
from bco_ray.pipeline.log import ResolvedLog
from bco_ray.pipeline.own_log import is_own
from bco_ray.scoring.mixing import Mixing
from bco_ray.storage.registry import ModelVersion, Registry


def mixing_of(rounds: RoundsSpec, log: ResolvedLog, policy: str | None) -> Mixing:
    """What scoring is told. `policy`: the exact name (`bot/3`) of the version that training starts from, if it is one.

    The draw's salt is the round's own part of the log: another round draws other votes, the same one the same.
    """
    return Mixing(
        older=rounds.older,
        older_files=log.older,
        half_life_days=rounds.half_life_days,
        off_policy_weight=rounds.off_policy_weight,
        policy=policy,
        salt=" ".join(entry for entry in log.data.feedback if is_own(entry)),
    )


def identity_of(mixing: Mixing) -> dict[str, object]:
    """What of it goes into a content address: nothing where every vote is in and counts as the log says."""
    found: dict[str, object] = {"older": mixing.older, "salt": mixing.salt} if mixing.draws else {}
    if mixing.half_life_days is not None:
        found["half_life_days"] = mixing.half_life_days
    if mixing.off_policy_weight != 1:
        found |= {"off_policy_weight": mixing.off_policy_weight, "policy": mixing.policy}
    return {"mixing": found} if found else {}


def require_known_policy(rounds: RoundsSpec, base: str, policy: str | None) -> None:
    """Raises SpecError where votes are to be told apart by whose answer they are on, and `base` has no name."""
    if rounds.off_policy_weight != 1 and policy is None:
        raise SpecError(
            f"rounds.off_policy_weight: {base} is no registered version, so no vote names it. Leave it 1, or train "
            "from a version (model.base: name/3 or name@prod)."
        )


def kept_reference(base: str, storage: Path) -> str:
    """The reference that the version `base` was itself trained with; a version that was not trained here is its own.

    Raises SpecError where `base` is no version, or where `kept` might mean another model; ModelError.
    """
    registry = Registry(storage)
    if Path(KEPT).exists() or registry.versions(KEPT):
        raise SpecError(
            f"model.reference: {KEPT}: there is a model of that name, too. Write ./{KEPT} or {KEPT}/1 for that one, or "
            "the reference itself for the one that earlier rounds had (bco models show says which)."
        )
    version = _version(base, registry)
    return str(version.lineage.get("reference") or version.lineage.get("parent") or version.reference)


def require_kept(base: str, storage: Path, fingerprint: str) -> None:
    """Raises SpecError if the reference is no longer, byte for byte, the one that `base` was trained with."""
    version = _version(base, Registry(storage))
    if version.lineage.get("reference_fingerprint", fingerprint) != fingerprint:
        raise SpecError(
            f"model.reference: {KEPT}: {version.lineage['reference']} has changed since {version.reference} was "
            "trained with it. Put it back as it was, or name another reference."
        )


def _version(base: str, registry: Registry) -> ModelVersion:
    name, _, number = base.rpartition("/")
    if not (number.isdigit() and int(number) in registry.versions(name)):
        raise SpecError(
            f"model.reference: {KEPT}: model.base is {base}, no registered version, so it has no reference to keep. "
            "Leave model.reference out for this round: the base is its reference, and the next rounds can keep it."
        )
    return registry.get(name, int(number))
