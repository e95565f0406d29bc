"""The density ratio on prompts: found where there is a shift, left alone where there is none, out of fold always."""

from __future__ import annotations

import json
import pickle
import tracemalloc
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from bco_ray.errors import DataError
from bco_ray.objective import LogisticModel
from bco_ray.schema import PROMPTS
from bco_ray.scoring import matching_fit
from bco_ray.scoring.matching import DensityReport, Matching, apply_matching, fit_matching, in_process
from bco_ray.scoring.matching_fit import draw_sample, fit_folds, survey_shards
from bco_ray.scoring.matching_passes import FOLDS, fold_of
from bco_ray.scoring.matching_prompts import Features, Prompts, embedding_column, embeddings, train_prompts
from bco_ray.scoring.shards import write_table

WIDTH = 8


def write_prompts(
    directory: Path,
    *,
    shift: float,
    prompts: int = 3000,
    seed: int = 0,
    shards: int = 3,
    width: int = WIDTH,
    votes: int = 1,
    up_rate: float = 0.4,
) -> list[Path]:
    """Prompts are unit Gaussians; those of thumbs-up are moved by `shift` along the first axis. One in 20 validates."""
    random = np.random.default_rng(seed)
    up_N = random.random(prompts) < up_rate
    embedding_ND = (random.normal(size=(prompts, width)) + shift * up_N[:, None] * np.eye(width)[0]).astype(np.float32)
    count_N = random.integers(1, votes + 1, prompts)
    other_N = random.integers(0, votes, prompts)  # a few votes of the other kind, if there are many
    hash_N = random.integers(-(2**63), 2**63, prompts)
    split_N = np.where(np.arange(prompts) % 20, "train", "validation")
    for number in range(shards):
        rows = np.arange(number, prompts, shards)
        table = {
            "prompt_hash": hash_N[rows],
            "split": split_N[rows],
            "chosen": np.where(up_N, count_N, other_N)[rows],
            "rejected": np.where(up_N, other_N, count_N)[rows],
            "embedding": embedding_column(embedding_ND[rows]),
        }
        directory.mkdir(exist_ok=True)
        write_table(directory / f"prompts-{number:05d}.parquet", pa.table(table, schema=PROMPTS))
    return sorted(directory.glob("*.parquet"))


def fit(shards: Sequence[Path], mode: Any = "auto", **changes: Any) -> tuple[Matching | None, DensityReport]:
    asked = {"target": "positive", "min_density_ratio": 0.5, "max_density_ratio": 10.0} | changes
    return fit_matching(shards, mode=mode, **asked)


def everything(shards: Sequence[Path]) -> Prompts:
    blocks = [block for path in shards for block in train_prompts(path)]
    return Prompts(*(np.concatenate([getattr(block, name) for block in blocks]) for name in Prompts.__annotations__))


def mean_weights(matching: Matching, rows: Prompts) -> list[float]:
    """Over the train rows of each class."""
    means = []
    for label in (0, 1):
        weight_N = matching.weights(rows.embedding_ND, rows.prompt_hash_N, np.full(len(rows), bool(label)))
        means.append(float(np.average(weight_N, weights=rows.count_N2[:, label])))
    return means


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_no_shift_leaves_every_weight_at_1(tmp_path: Path, seed: int) -> None:
    matching, report = fit(write_prompts(tmp_path, shift=0.0, seed=seed))
    assert matching is None
    assert not report.applied
    assert report.auc is not None
    assert report.auc < 0.55
    assert "look alike" in report.reason


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_shift_is_found_and_weights_follow_it(tmp_path: Path, seed: int) -> None:
    shards = write_prompts(tmp_path, shift=1.5, seed=seed)
    matching, report = fit(shards)
    assert matching is not None
    assert report.applied
    assert report.auc is not None
    assert report.auc > 0.75
    rows = everything(shards)
    label_N = rows.count_N2[:, 1] > 0
    weight_N = matching.weights(rows.embedding_ND, rows.prompt_hash_N, label_N)
    along_N = rows.embedding_ND[:, 0]
    assert (weight_N[label_N] == 1.0).all()
    assert np.corrcoef(along_N[~label_N], weight_N[~label_N])[0, 1] > 0.6
    assert weight_N[~label_N & (along_N > 1.5)].mean() > 2 * weight_N[~label_N & (along_N < -0.5)].mean()


@pytest.mark.parametrize("target", ["positive", "mixture"])
def test_weights_of_train_rows_average_1_in_each_class(tmp_path: Path, target: str) -> None:
    shards = write_prompts(tmp_path, shift=1.5, votes=4)
    matching, report = fit(shards, target=target)
    assert matching is not None
    assert report.target == target
    assert mean_weights(matching, everything(shards)) == pytest.approx([1.0, 1.0], abs=1e-9)


def test_the_mixture_weighs_both_classes_and_keeps_half_of_every_vote(tmp_path: Path) -> None:
    rows = everything(shards := write_prompts(tmp_path, shift=2.0))
    matching, report = fit(shards, target="mixture")
    assert matching is not None
    logits_N = matching.logits(rows.embedding_ND, rows.prompt_hash_N)
    ratio_N = np.clip(np.exp(logits_N), 0.5, 10.0)
    down_N, up_N = matching.bare_weights(logits_N)
    assert down_N == pytest.approx((1 + ratio_N) / 2)
    assert up_N == pytest.approx((1 + 1 / ratio_N) / 2)
    assert min(down_N.min(), up_N.min()) >= 0.5
    positive = fit(shards)[1]
    assert positive.ess_fraction is not None
    assert report.ess_fraction is not None
    assert report.ess_fraction > positive.ess_fraction


def test_on_forces_and_off_skips(tmp_path: Path) -> None:
    shards = write_prompts(tmp_path, shift=0.0)
    assert fit(shards, "on")[0] is not None
    matching, report = fit(shards, "off")
    assert (matching, report.applied) == (None, False)


def test_weights_that_would_leave_little_are_refused_or_warned_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bco_ray.scoring.matching.LEAST_ESS", 0.9)
    shards = write_prompts(tmp_path, shift=1.5)
    matching, report = fit(shards)
    assert matching is None
    assert "effective sample size" in report.reason
    matching, report = fit(shards, "on")
    assert matching is not None
    assert any("effective sample size" in warning for warning in report.warnings)


def test_noise_that_could_be_memorised_says_nothing_out_of_fold(tmp_path: Path) -> None:
    matching, report = fit(write_prompts(tmp_path, shift=0.0, prompts=200), "on")
    assert matching is not None
    assert len(matching.folds) == FOLDS
    assert report.auc is not None
    assert 0.3 < report.auc < 0.7
    assert matching.calibration.coef_D[0] >= 0
    hashes = np.array([-7, -7, 3, 2**62], dtype=np.int64)
    assert fold_of(hashes)[0] == fold_of(hashes)[1]
    assert ((fold_of(hashes) >= 0) & (fold_of(hashes) < FOLDS)).all()


@pytest.mark.parametrize(("up_rate", "absent"), [(1.0, "down"), (0.0, "up")])
@pytest.mark.parametrize("mode", ["auto", "on"])
def test_one_class_has_nothing_to_match_with(tmp_path: Path, up_rate: float, absent: str, mode: Any) -> None:
    matching, report = fit(write_prompts(tmp_path, shift=2.0, prompts=200, up_rate=up_rate), mode=mode)
    assert matching is None
    assert (report.applied, report.reason) == (False, f"no thumbs-{absent} to match with")


def test_too_few_prompts_say_so(tmp_path: Path) -> None:
    for shards in (write_prompts(tmp_path, shift=2.0, prompts=20), []):
        matching, report = fit(shards)
        assert matching is None
        assert "distinct prompts" in report.reason


def scikit_learn(rows: Prompts, mean_D: np.ndarray, left_out: int, C: float) -> np.ndarray:
    """Its coefficients and intercept, from one row for each prompt and kind of vote, weighted by the votes."""
    kept = rows.only(fold_of(rows.prompt_hash_N) != left_out)
    X = np.tile(Features.of(kept.embedding_ND, mean_D).matrix()[:, :-1], (2, 1))
    y, votes = np.repeat([0, 1], len(kept)), kept.count_N2.T.ravel()
    balance = votes.sum() / (2 * kept.count_N2.sum(axis=0))
    model = LogisticRegression(C=C, tol=1e-12, max_iter=5000, solver="newton-cholesky")
    model.fit(X, y, sample_weight=votes * balance[y])
    return np.append(model.coef_[0], model.intercept_)


@pytest.mark.parametrize("per_class", [20_000, 2_000])
def test_each_fold_model_is_scikit_learns_on_the_other_folds(tmp_path: Path, per_class: int) -> None:
    """Whether the sample holds every prompt or only some: the fit is over all of them."""
    shards = write_prompts(tmp_path, shift=1.0, prompts=20_000, width=32, votes=3)
    survey = survey_shards(shards, in_process, keep=per_class)
    sample = draw_sample(shards, survey, in_process)
    found = fit_folds(shards, survey, sample, each=in_process, strength=1.0)
    assert found.minimum.converged
    assert found.minimum.passes <= 10
    rows = everything(shards)
    for fold in range(FOLDS):
        expected_E = scikit_learn(rows, found.mean_D, fold, 1.0)
        assert found.minimum.point_EK[:, fold] == pytest.approx(expected_E, abs=1e-6)


def backwards(function: Callable[[Path], Any], shards: Sequence[Path]) -> Iterator[Any]:
    """`Each` with workers that finish in the wrong order, and functions that travel."""
    done = {path: pickle.loads(pickle.dumps(function))(path) for path in reversed(shards)}
    return (done[path] for path in shards)


def test_the_order_of_work_does_not_show_in_a_bit(tmp_path: Path) -> None:
    shards = write_prompts(tmp_path, shift=1.0, shards=7)
    one, other = fit(shards), fit(shards, each=backwards)
    assert one[0] is not None
    assert other[0] is not None
    assert one[0].state_dict() == other[0].state_dict()
    assert one[1] == other[1]


def test_how_prompts_are_cut_into_shards_hardly_matters(tmp_path: Path) -> None:
    (whole, _), (cut, _) = (fit(write_prompts(tmp_path / str(n), shift=1.0, shards=n)) for n in (1, 7))
    assert whole is not None
    assert cut is not None
    for one, other in zip(whole.folds, cut.folds, strict=True):
        assert one.coef_D == pytest.approx(other.coef_D, abs=1e-5)


def test_the_sample_is_bounded_and_does_not_depend_on_shard_order(tmp_path: Path) -> None:
    shards = write_prompts(tmp_path, shift=0.5, prompts=600)
    samples = []
    for order in (shards, shards[::-1]):
        survey = survey_shards(order, in_process, keep=50)
        samples.append(draw_sample(order, survey, in_process))
    assert len(samples[0].fold_N) == 100
    assert samples[0].count_N2.sum() == 100
    assert sorted(samples[0].features_NE[:, 0]) == pytest.approx(sorted(samples[1].features_NE[:, 0]), abs=1e-6)


def test_memory_does_not_grow_with_the_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(matching_fit, "PROMPTS_PER_CLASS", 500)
    monkeypatch.setattr("bco_ray.scoring.matching.survey_shards", partial(survey_shards, keep=500))
    peaks = []
    for copies in (2, 16):
        shards = write_prompts(tmp_path / str(copies), shift=1.0, prompts=2000 * copies, shards=copies, width=64)
        tracemalloc.start()
        fit(shards)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.3 * peaks[0]


def test_auc_is_that_of_the_rows(tmp_path: Path) -> None:
    shards = write_prompts(tmp_path, shift=1.0, votes=3)
    matching, report = fit(shards)
    assert matching is not None
    rows = everything(shards)
    logits_N = matching.logits(rows.embedding_ND, rows.prompt_hash_N)
    exact = roc_auc_score(np.repeat([0, 1], len(rows)), np.tile(logits_N, 2), sample_weight=rows.count_N2.T.ravel())
    assert report.auc == pytest.approx(exact, abs=1e-3)


def test_prompts_at_both_ends_are_named(tmp_path: Path) -> None:
    shards = write_prompts(tmp_path, shift=1.5)
    matching, report = fit(shards)
    assert matching is not None
    rows = everything(shards)
    logits_N = matching.logits(rows.embedding_ND, rows.prompt_hash_N)
    down = sorted(zip(logits_N, rows.prompt_hash_N, strict=True), key=lambda pair: -pair[0])
    named = [row["prompt_hash"] for row in report.prompts_most_like_other if row["label"] == "down"]
    down = [pair for pair in down if rows.count_N2[rows.prompt_hash_N == pair[1], 0].any()]
    assert named == [prompt_hash for _, prompt_hash in [*down[:5], *down[:-6:-1]]]
    ups = [row for row in report.prompts_most_like_other if row["label"] == "up"]
    assert [row["like_other"] for row in ups] == [True] * 5 + [False] * 5
    assert max(row["log_ratio"] for row in ups[:5]) < min(row["log_ratio"] for row in ups[5:])
    json.dumps(report.as_json(), allow_nan=False)


def test_a_classifier_from_a_file_weighs_as_it_did(tmp_path: Path) -> None:
    shards = write_prompts(tmp_path / "a", shift=1.5)
    matching, report = fit(shards, target="mixture")
    assert matching is not None
    again = Matching.from_state(json.loads(json.dumps(matching.state_dict(), allow_nan=False)))
    assert again.state_dict() == matching.state_dict()
    reused, same = apply_matching(shards, again)
    assert reused is not None
    assert reused.state_dict() == matching.state_dict()
    assert (same.auc, same.weight_p90, same.ess_fraction) == (report.auc, report.weight_p90, report.ess_fraction)
    with pytest.raises(ValueError, match="format"):
        Matching.from_state({})


def test_a_classifier_from_a_file_is_normalised_on_the_new_log(tmp_path: Path) -> None:
    matching, _ = fit(write_prompts(tmp_path / "a", shift=1.5))
    assert matching is not None
    shards = write_prompts(tmp_path / "b", shift=0.7, seed=1)
    reused, report = apply_matching(shards, matching)
    assert reused is not None
    assert report.applied
    assert mean_weights(reused, everything(shards)) == pytest.approx([1.0, 1.0], abs=1e-9)
    assert apply_matching(shards, matching, mode="off")[0] is None
    assert apply_matching([], matching)[0] is None


def test_a_classifier_for_another_embedding_is_refused(tmp_path: Path) -> None:
    matching, _ = fit(write_prompts(tmp_path / "a", shift=1.5))
    assert matching is not None
    with pytest.raises(DataError, match="width 8, these have 4"):
        apply_matching(write_prompts(tmp_path / "b", shift=1.5, width=4), matching)


def test_embeddings_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    (shard,) = write_prompts(tmp_path, shift=1.0, shards=1)
    rows = pq.read_table(shard)
    embedding_ND = embeddings(rows, shard).copy()
    embedding_ND[7, 2] = float("nan")
    write_table(shard, rows.set_column(4, PROMPTS.field("embedding"), embedding_column(embedding_ND)))
    with pytest.raises(DataError, match="NaN"):
        fit([shard])


def test_a_classifier_that_points_the_wrong_way_is_not_believed(tmp_path: Path) -> None:
    shards = write_prompts(tmp_path, shift=1.5)
    matching, _ = fit(shards)
    assert matching is not None
    wrong = replace(matching, folds=tuple(LogisticModel(-m.coef_D, -m.intercept) for m in matching.folds))
    _, report = apply_matching(shards, wrong, mode="auto")
    assert not report.applied
    assert report.auc is not None
    assert report.auc < 0.5


def test_embeddings_are_read_as_they_were_written_even_from_a_slice(tmp_path: Path) -> None:
    embedding_ND = np.arange(12, dtype=np.float32).reshape(4, 3) / 7
    rows = pa.table({"embedding": embedding_column(embedding_ND)})
    assert np.array_equal(embeddings(rows, tmp_path), embedding_ND)
    assert np.array_equal(embeddings(rows.slice(1, 2), tmp_path), embedding_ND[1:3])
    assert np.array_equal(embeddings(rows.to_batches()[0].slice(3), tmp_path), embedding_ND[3:])
    assert embeddings(rows.slice(4), tmp_path).shape == (0, 0)


@pytest.mark.parametrize("column", [[b"12345678", b"1234"], [b"12345", b"12345"], [b"", b""], [b"1234", None]])
def test_embeddings_of_several_widths_are_refused(tmp_path: Path, column: list[bytes | None]) -> None:
    with pytest.raises(DataError, match="not all of one width"):
        embeddings(pa.table({"embedding": pa.array(column, pa.binary())}), tmp_path)


@pytest.mark.parametrize("offset", [0.0, 1000.0])
def test_products_with_features_are_those_with_their_matrix(offset: float) -> None:
    """Also where the embeddings have almost everything in common."""
    random = np.random.default_rng(0)
    embedding_ND = (random.normal(size=(50, 6)) + offset).astype(np.float32)
    mean_D = embedding_ND.mean(axis=0, dtype=np.float64)
    centred_ND = embedding_ND.astype(np.float64) - mean_D
    X_NE = np.append(centred_ND / np.linalg.norm(centred_ND, axis=1, keepdims=True), np.ones((50, 1)), axis=1)
    point_EK, residual_NK = random.normal(size=(7, 3)), random.normal(size=(50, 3))
    for dtype, error in ((np.float64, 1e-12), (np.float32, 1e-3)):
        features = Features.of(embedding_ND, mean_D, dtype)
        assert features.logits(point_EK) == pytest.approx(X_NE @ point_EK, abs=error)
        assert features.gradient(residual_NK) == pytest.approx(X_NE.T @ residual_NK, abs=error * 10)
        assert features.matrix() == pytest.approx(X_NE, abs=error)


def test_prompts_that_do_not_overlap_are_said_to_be_so(tmp_path: Path) -> None:
    shards = write_prompts(tmp_path, shift=40.0)
    _, report = fit(shards, mode="on")
    assert any("unlike any thumbs-up prompt" in warning for warning in report.warnings)
