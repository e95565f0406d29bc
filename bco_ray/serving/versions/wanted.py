"""What should be served now: read from the registry (followed names), or fixed by the arguments. A value."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from bco_ray.errors import ModelError
from bco_ray.serving.args import ServeArgs
from bco_ray.serving.versions.routes import Canary
from bco_ray.storage.registry import Registry


@dataclass(frozen=True)
class Wanted:
    """`directories` of all versions there are, by reference; `names` (`helper`, `helper@prod`) to the references they
    mean: those have to be ready. `canaries` by bare name.
    """

    directories: dict[str, Path] = field(default_factory=dict)
    names: dict[str, str] = field(default_factory=dict)
    canaries: dict[str, Canary] = field(default_factory=dict)

    @property
    def required(self) -> list[str]:
        """References that some name or canary means."""
        canaries = (canary.reference for canary in self.canaries.values())
        return list(dict.fromkeys([*self.names.values(), *canaries]))


def wanted(args: ServeArgs) -> Wanted:
    """Read anew: cheap enough for every second. Raises ModelError for a followed name without any version; one whose
    versions have not passed their gates means nothing, and is no bar to the others.
    """
    if args.model_id and args.model_dir:
        bare = args.model_id.split("/")[0]
        return Wanted({args.model_id: args.model_dir}, dict.fromkeys((bare, *args.aliases), args.model_id))
    registry, everything = Registry(args.storage), Wanted()
    for name in args.follow:
        _add(everything, registry, name)
    return everything


def _add(found: Wanted, registry: Registry, name: str) -> None:
    versions, state = registry.versions(name), registry.state(name)
    if not versions:
        raise ModelError(f"{name}: no such model in {registry.root}.")
    found.directories.update({f"{name}/{number}": registry.root / name / str(number) for number in versions})
    if (number := registry.gates(name).meant()) is not None:
        found.names[name] = f"{name}/{number}"
    found.names.update({f"{name}@{alias}": f"{name}/{number}" for alias, number in state.aliases.items()})
    if state.canary and state.canary.alias in state.aliases:
        found.canaries[name] = Canary(f"{name}/{state.aliases[state.canary.alias]}", state.canary.percent)
