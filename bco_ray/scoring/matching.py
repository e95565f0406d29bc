"""Distribution matching: how much a thumbs-down counts, by how much its prompt looks like those that get thumbs-up.

A logistic classifier on prompt embeddings estimates p+(x) / p-(x) (spec 1.7). Prompts are dealt to K folds by their
hash and each fold's rows are weighed by the model that never saw that fold, so no row is judged by a classifier that
was fitted on it. Everything stored is plain numbers.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from bco_ray.objective.density import WeightSums, auc, auc_standard_error, density_ratio_from_logits
from bco_ray.objective.logistic import LogisticModel, fit_logistic, mean_log_loss

FOLDS = 5
STRENGTHS = (1e-3, 1e-2, 1e-1, 1.0, 10.0, 100.0)
"""Inverse L2 strengths C to choose from on held-out log-loss."""
ROWS_PER_CLASS = 20_000
LEAST_AUC = 0.55
LEAST_ESS = 0.10

Mode = Literal["auto", "on", "off"]


@dataclass(frozen=True)
class Matching:
    """The fitted ratio: K fold models on centred unit-length embeddings, and one calibration of their logits."""

    mean_D: np.ndarray
    folds: tuple[LogisticModel, ...]
    calibration: LogisticModel
    min_density_ratio: float
    max_density_ratio: float

    def logits(self, embedding_ND: np.ndarray, prompt_hash_N: np.ndarray) -> np.ndarray:
        """Out-of-fold log density ratio per row (N,)."""
        raw_N = fold_logits(features(embedding_ND, self.mean_D), prompt_hash_N, self.folds)
        return self.calibration.logits(raw_N[:, None])

    def clamped_ratio(self, embedding_ND: np.ndarray, prompt_hash_N: np.ndarray) -> np.ndarray:
        """p+(x) / p-(x) per row, clamped, not yet divided by its mean."""
        return density_ratio_from_logits(
            self.logits(embedding_ND, prompt_hash_N),
            n_chosen=1,
            n_rejected=1,
            balanced=True,
            min_density_ratio=self.min_density_ratio,
            max_density_ratio=self.max_density_ratio,
            normalise="none",
        )


@dataclass(frozen=True)
class DensityReport:
    """What the matching stage found and did; `reason` says why weights were applied or left at 1."""

    mode: Mode
    applied: bool
    reason: str
    rows_fitted: int
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

    def as_json(self) -> dict[str, Any]:
        """Plain values for the manifest."""
        return asdict(self)


@dataclass(frozen=True)
class Sample:
    """Train rows to fit on: embeddings (N, D), prompt hashes (N,), labels (N,)."""

    embedding_ND: np.ndarray
    prompt_hash_N: np.ndarray
    label_N: np.ndarray


def fit_matching(
    shards: list[Path], *, mode: Mode, min_density_ratio: float, max_density_ratio: float
) -> tuple[Matching | None, DensityReport, float]:
    """Fit on the shards' train rows. Returns the ratio to apply (None: weights stay 1), a report, and the mean ratio.

    The mean is over all thumbs-down train rows and is what weights are divided by, so that they average 1.
    """
    sample = draw_sample(shards)
    distinct = [len(np.unique(sample.prompt_hash_N[sample.label_N == label])) for label in (True, False)]
    if mode == "off" or min(distinct) < 2 * FOLDS:
        reason = "matching is off" if mode == "off" else f"only {min(distinct)} distinct prompts in one class"
        return None, DensityReport(mode, False, reason, len(sample.label_N)), 1.0
    matching, strength, logit_N = _fit(sample, min_density_ratio, max_density_ratio)
    area = auc(logit_N, sample.label_N)
    error = auc_standard_error(area, *distinct)  # rows with the same prompt are one observation of it
    sums = _ratio_sums(shards, matching)
    applied, reason = _decide(mode, area, area - 1.96 * error, sums.ess_fraction)
    report = DensityReport(
        mode=mode,
        applied=applied,
        reason=reason,
        rows_fitted=len(sample.label_N),
        auc=area,
        auc_low=area - 1.96 * error,
        auc_high=area + 1.96 * error,
        strength=strength,
        weight_mean=sums.mean,
        weight_p10=sums.quantile(0.1) / sums.mean,
        weight_p50=sums.quantile(0.5) / sums.mean,
        weight_p90=sums.quantile(0.9) / sums.mean,
        clamped_low=sums.clamped_low,
        clamped_high=sums.clamped_high,
        ess_fraction=sums.ess_fraction,
    )
    return (matching if applied else None), report, sums.mean


def draw_sample(shards: Iterable[Path], rows_per_class: int = ROWS_PER_CLASS) -> Sample:
    """Up to `rows_per_class` train rows of each class, one shard in memory at a time.

    Which rows is decided by their prompt's hash (the smallest are kept), so the sample does not depend on order.
    """
    kept: dict[bool, Sample] = {}
    for path in shards:
        rows = pq.read_table(path, columns=["split", "label", "prompt_hash", "embedding"])
        rows = rows.filter(pc.equal(rows["split"], "train"))
        if rows.num_rows == 0:
            continue
        shard = Sample(
            embeddings(rows),
            rows["prompt_hash"].to_numpy(),
            rows["label"].to_numpy(zero_copy_only=False),
        )
        for label in (True, False):
            mine = _take(shard, shard.label_N == label)
            kept[label] = _smallest(_concat(kept[label], mine) if label in kept else mine, rows_per_class)
    return _concat(kept[True], kept[False])


def embeddings(rows: pa.Table) -> np.ndarray:
    """The embedding column as (N, D) float32."""
    column = rows["embedding"].combine_chunks()
    return np.asarray(column.flatten()).reshape(len(column), -1)


def features(embedding_ND: np.ndarray, mean_D: np.ndarray) -> np.ndarray:
    """Centred (the chat template's constant part goes) and of unit length, float64."""
    centred = embedding_ND.astype(np.float64) - mean_D
    unit_ND: np.ndarray = centred / np.maximum(np.linalg.norm(centred, axis=1, keepdims=True), 1e-12)
    return unit_ND


def fold_of(prompt_hash_N: np.ndarray) -> np.ndarray:
    """Fold 0..K-1 per row; rows with equal prompts share it."""
    return np.asarray(prompt_hash_N % FOLDS)


def fold_logits(features_ND: np.ndarray, prompt_hash_N: np.ndarray, folds: tuple[LogisticModel, ...]) -> np.ndarray:
    """Each row's logit by the model of its own fold, which was fitted without it."""
    all_KN = np.stack([model.logits(features_ND) for model in folds])
    return np.asarray(all_KN[fold_of(prompt_hash_N), np.arange(len(features_ND))])


def _fit(sample: Sample, low: float, high: float) -> tuple[Matching, float, np.ndarray]:
    """Choose C by out-of-fold log-loss, then calibrate: scale the out-of-fold logits to be log ratios."""
    mean_D = sample.embedding_ND.astype(np.float64).mean(0)
    features_ND = features(sample.embedding_ND, mean_D)
    candidates = {C: _fit_folds(features_ND, sample, C) for C in STRENGTHS}
    logits = {C: fold_logits(features_ND, sample.prompt_hash_N, folds) for C, folds in candidates.items()}
    best = min(STRENGTHS, key=lambda C: _loss_of_logits(logits[C], sample.label_N))
    calibration = fit_logistic(lambda: [(logits[best][:, None], sample.label_N)], C=1e6)
    matching = Matching(mean_D, candidates[best], calibration, low, high)
    return matching, best, calibration.logits(logits[best][:, None])


def _loss_of_logits(logit_N: np.ndarray, label_N: np.ndarray) -> float:
    return mean_log_loss(LogisticModel(np.ones(1), 0.0), lambda: [(logit_N[:, None], label_N)])


def _fit_folds(features_ND: np.ndarray, sample: Sample, C: float) -> tuple[LogisticModel, ...]:
    fold_N = fold_of(sample.prompt_hash_N)

    def without(fold: int) -> LogisticModel:
        rest_N = fold_N != fold
        return fit_logistic(lambda: [(features_ND[rest_N], sample.label_N[rest_N])], C=C)

    return tuple(without(fold) for fold in range(FOLDS))


def _ratio_sums(shards: Iterable[Path], matching: Matching) -> WeightSums:
    """Over all thumbs-down train rows, shard by shard in name order."""
    sums = WeightSums()
    for path in shards:
        rows = pq.read_table(path, columns=["split", "label", "prompt_hash", "embedding"])
        rows = rows.filter(pc.and_(pc.equal(rows["split"], "train"), pc.invert(rows["label"])))
        if rows.num_rows:
            ratio_N = np.exp(matching.logits(embeddings(rows), rows["prompt_hash"].to_numpy()))
            low, high = matching.min_density_ratio, matching.max_density_ratio
            sums = sums.merge(WeightSums.of(ratio_N, low=low, high=high))
    return sums


def _decide(mode: Mode, area: float, auc_low: float, ess: float) -> tuple[bool, str]:
    if mode == "on":
        return True, "matching is on"
    if area < LEAST_AUC or auc_low <= 0.5:
        return (
            False,
            f"prompts of ups and downs look alike (held-out AUC {area:.3f}, needs {LEAST_AUC} and above chance)",
        )
    if ess < LEAST_ESS:
        return (
            False,
            f"the weights would keep only {ess:.0%} of the thumbs-down rows' information (effective sample size)",
        )
    return True, f"prompts of ups and downs differ (held-out AUC {area:.3f})"


def _take(sample: Sample, mask_N: np.ndarray) -> Sample:
    return Sample(sample.embedding_ND[mask_N], sample.prompt_hash_N[mask_N], sample.label_N[mask_N])


def _concat(first: Sample, second: Sample) -> Sample:
    return Sample(
        np.concatenate([first.embedding_ND, second.embedding_ND]),
        np.concatenate([first.prompt_hash_N, second.prompt_hash_N]),
        np.concatenate([first.label_N, second.label_N]),
    )


def _smallest(sample: Sample, count: int) -> Sample:
    if len(sample.label_N) <= count:
        return sample
    order = np.argsort(sample.prompt_hash_N, kind="stable")[:count]
    return _take(sample, np.sort(order))
