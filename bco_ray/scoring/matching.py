"""Distribution matching: how much a thumb counts, by how much its prompt looks like those that get the other thumb.

A logistic classifier on prompt embeddings estimates p+(x) / p-(x) (spec 1.7). Prompts are dealt to K folds by their
hash and each fold's prompts are weighed by the model that never saw that fold, so none is judged by a classifier that
was fitted on it. Everything stored is plain numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from bco_ray.objective.density import auc_standard_error
from bco_ray.objective.histogram import ScoreHistogram
from bco_ray.objective.logistic import LogisticModel
from bco_ray.scoring.matching_fit import draw_sample, fit_folds, survey_shards
from bco_ray.scoring.matching_passes import FOLDS, Each, Survey, in_process
from bco_ray.scoring.matching_weights import Matching, Target, Weighed, histogram_of, weigh

__all__ = [
    "DensityReport",
    "Each",
    "Matching",
    "Mode",
    "Target",
    "apply_matching",
    "fit_matching",
    "in_process",
]

LEAST_AUC = 0.55
LEAST_ESS = 0.10

Mode = Literal["auto", "on", "off"]


@dataclass(frozen=True)
class DensityReport:
    """What the matching stage found and did; `reason` says why weights were applied or left at 1.

    Weights' quantiles are those of thumbs-down rows, divided by their mean; `weight_mean` is that mean. `clamped_*` and
    `ess_fraction` speak of all rows that are weighted (the worse class where both are). `prompts_most_like_other`:
    {prompt_hash, label: up|down, like_other: bool, log_ratio}, the prompts most and least like the other class's.
    """

    mode: Mode
    target: Target
    applied: bool
    reason: str
    rows_fitted: int = 0
    auc: float | None = None
    auc_low: float | None = None
    auc_high: float | None = None
    strength: float | None = None
    weight_mean: float | None = None
    weight_p10: float | None = None
    weight_p50: float | None = None
    weight_p90: float | None = None
    clamped_low: int = 0
    clamped_high: int = 0
    ess_fraction: float | None = None
    warnings: tuple[str, ...] = ()
    prompts_most_like_other: tuple[dict[str, Any], ...] = ()

    def as_json(self) -> dict[str, Any]:
        """Plain values for the manifest."""
        return asdict(self) | {
            "warnings": list(self.warnings),
            "prompts_most_like_other": list(self.prompts_most_like_other),
        }


MOST_UNLIKE = 0.9
NO_OVERLAP = (
    "nearly all thumbs-down prompts are unlike any thumbs-up prompt, so that weights cannot make them alike: collect "
    "votes of both kinds on the same kinds of prompts, or set scoring.target: mixture"
)


def fit_matching(
    shards: Sequence[Path],
    *,
    mode: Mode,
    target: Target,
    min_density_ratio: float,
    max_density_ratio: float,
    each: Each = in_process,
) -> tuple[Matching | None, DensityReport]:
    """Fit on the train prompts of PROMPTS files. Returns the ratio to apply (None: weights stay 1) and a report.

    `each` reads the shards, here or on a cluster; memory holds a bounded sample of prompts, however many there are.
    Raises DataError where an embedding is not finite, or of another width than the others.
    """
    if mode == "off":
        return None, DensityReport(mode, target, False, "matching is off")
    survey = survey_shards(shards, each)
    lack = _lack(survey)
    if lack:
        return None, DensityReport(mode, target, False, lack)
    fit = fit_folds(shards, survey, draw_sample(shards, survey, each), each=each)
    folds = tuple(LogisticModel(point_E[:-1], float(point_E[-1])) for point_E in fit.minimum.point_EK.T)
    bare = Matching(fit.mean_D, folds, _identity(), target, min_density_ratio, max_density_ratio)
    histogram = histogram_of(bare, shards, each)
    calibration, warnings = _calibrated(histogram)
    if not fit.minimum.converged:
        warnings += (f"the classifier's fit was stopped after {fit.minimum.passes} passes; its ratios are approximate",)
    matching = replace(bare, calibration=calibration)
    return _judged(matching, survey, histogram, weigh(matching, shards, each), mode, fit.strength, warnings)


def apply_matching(
    shards: Sequence[Path], matching: Matching, *, mode: Mode = "on", each: Each = in_process
) -> tuple[Matching | None, DensityReport]:
    """A classifier fitted earlier on these prompts: only the means that weights are divided by are taken anew.

    A prompt that the fit has seen is still weighed by the model that has not seen it. Raises DataError if the
    embeddings have another width.
    """
    if mode == "off":
        return None, DensityReport(mode, matching.target, False, "matching is off")
    survey = survey_shards(shards, each)
    if min(survey.distinct) == 0:
        return None, DensityReport(mode, matching.target, False, _too_few(survey))
    return _judged(
        matching, survey, histogram_of(matching, shards, each), weigh(matching, shards, each), mode, None, ()
    )


def _judged(
    matching: Matching,
    survey: Survey,
    histogram: ScoreHistogram,
    weighed: Weighed,
    mode: Mode,
    strength: float | None,
    warnings: tuple[str, ...],
) -> tuple[Matching | None, DensityReport]:
    area = histogram.auc()
    margin = 1.96 * auc_standard_error(area, survey.distinct[1], survey.distinct[0])  # votes on a prompt are one look
    ess = min(weighed.rejected.ess_fraction, weighed.chosen.ess_fraction)
    applied, reason = _decide(mode, area, area - margin, ess)
    if applied and ess < LEAST_ESS:
        warnings += (f"{_little(ess)}; lower scoring.max_density_ratio or set scoring.target: mixture",)
    if weighed.ratio.clamped_low > MOST_UNLIKE * weighed.rejected.count:
        warnings += (NO_OVERLAP,)
    mean = weighed.rejected.mean
    report = DensityReport(
        mode=mode,
        target=matching.target,
        applied=applied,
        reason=reason,
        rows_fitted=int(survey.count_F2.sum()) if strength is not None else 0,
        auc=area,
        auc_low=area - margin,
        auc_high=area + margin,
        strength=strength,
        weight_mean=mean,
        weight_p10=weighed.rejected.quantile(0.1) / mean,
        weight_p50=weighed.rejected.quantile(0.5) / mean,
        weight_p90=weighed.rejected.quantile(0.9) / mean,
        clamped_low=weighed.ratio.clamped_low,
        clamped_high=weighed.ratio.clamped_high,
        ess_fraction=ess,
        warnings=warnings if applied else (),
        prompts_most_like_other=_look_alikes(weighed),
    )
    normalised = replace(matching, chosen_mean=weighed.chosen.mean, rejected_mean=mean)
    return (normalised if applied else None), report


def _decide(mode: Mode, area: float, auc_low: float, ess: float) -> tuple[bool, str]:
    if mode == "on":
        return True, "matching is on"
    if area < LEAST_AUC or auc_low <= 0.5:
        return (
            False,
            f"prompts of ups and downs look alike (held-out AUC {area:.3f}, needs {LEAST_AUC} and above chance)",
        )
    if ess < LEAST_ESS:
        return False, _little(ess)
    return True, f"prompts of ups and downs differ (held-out AUC {area:.3f})"


def _little(ess: float) -> str:
    return f"the weights would keep only {ess:.0%} of the rows' information (effective sample size)"


def _calibrated(histogram: ScoreHistogram) -> tuple[LogisticModel, tuple[str, ...]]:
    """Scales out-of-fold logits to be log ratios; where they point the wrong way nothing is known: ratio 1."""
    calibration = histogram.calibration()
    if calibration.coef_D[0] > 0:
        return calibration, ()
    warning = "held-out prompts contradict the classifier (it has found nothing but noise); all ratios are set to 1"
    return LogisticModel(np.zeros(1), 0.0), (warning,)


def _look_alikes(weighed: Weighed) -> tuple[dict[str, Any], ...]:
    """Most like the other class first, for thumbs-down and then for thumbs-up."""
    return tuple(
        {"prompt_hash": prompt_hash, "label": label, "like_other": like_other, "log_ratio": sign * likeness}
        for (label, sign), ends in zip((("down", 1), ("up", -1)), weighed.likest, strict=True)
        for like_other, pairs in ((True, ends[1][::-1]), (False, ends[0]))
        for likeness, prompt_hash in pairs
    )


def _lack(survey: Survey) -> str:
    """What keeps the fold models from being fitted, or nothing."""
    outside_F2 = survey.count_F2.sum(axis=0) - survey.count_F2
    return _too_few(survey) if min(survey.distinct) < 2 * FOLDS or outside_F2.min() < 1 else ""


def _too_few(survey: Survey) -> str:
    if min(survey.distinct) == 0 < max(survey.distinct):
        return f"no thumbs-{'up' if survey.distinct[0] else 'down'} to match with"
    return f"only {min(survey.distinct)} distinct prompts in one class"


def _identity() -> LogisticModel:
    return LogisticModel(np.ones(1), 0.0)
