"""The matching of one scoring run: fitted on its prompts or taken from an earlier run, and kept in `matching.json`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from bco_ray.errors import SpecError
from bco_ray.scoring.matching import DensityReport, Matching, Mode, Target, apply_matching, fit_matching
from bco_ray.scoring.spread import each_of
from bco_ray.storage import files

MATCHING = "matching.json"
FEW_SHARDS = 8
"""Up to so many are read by the fitting task itself."""


@dataclass(frozen=True)
class Weighing:
    """How thumbs are matched. `classifier`: the `matching.json` of an earlier run, used instead of fitting;
    what is done with its ratios is this run's to say.
    """

    mode: Mode
    target: Target
    min_density_ratio: float
    max_density_ratio: float
    classifier: Path | None = None

    def __call__(self, prompts: Sequence[Path]) -> tuple[Matching | None, DensityReport]:
        """On the PROMPTS files of a run, reading them here or on the cluster. Raises SpecError for a bad classifier."""
        each = each_of(prompts)
        if self.classifier is not None and self.mode != "off":
            stored = replace(
                load_classifier(self.classifier),
                target=self.target,
                min_density_ratio=self.min_density_ratio,
                max_density_ratio=self.max_density_ratio,
            )
            return apply_matching(prompts, stored, mode=self.mode, each=each)
        return fit_matching(
            prompts,
            mode=self.mode,
            target=self.target,
            min_density_ratio=self.min_density_ratio,
            max_density_ratio=self.max_density_ratio,
            each=each,
        )


def save_matching(directory: Path, matching: Matching | None, report: DensityReport) -> None:
    """Beside the shards, for people and for later runs."""
    state = None if matching is None else matching.state_dict()
    files.write_json(directory / MATCHING, {"report": report.as_json(), "classifier": state})


def load_classifier(path: Path) -> Matching:
    """From a `matching.json`. Raises SpecError if matching was not applied there."""
    found: dict[str, Any] = files.read_json(path)
    if found.get("classifier") is None:
        reason = found.get("report", {}).get("reason", f"it is no {MATCHING}")
        raise SpecError(
            f"scoring.classifier: {path}: it holds no classifier ({reason}). Name that of a run whose matching was "
            "applied, or leave it out to fit one."
        )
    return Matching.from_state(found["classifier"])
