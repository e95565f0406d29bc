"""The density ratio on prompts: found where there is a shift, left alone where there is none, out of fold always."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bco_ray.schema import REFERENCE
from bco_ray.scoring.matching import FOLDS, draw_sample, fit_matching, fold_of
from bco_ray.scoring.shards import ShardWriter, WeightStage, embeddings, shard_facts

DIMENSION = 8


def write_reference(directory: Path, *, shift: float, rows: int = 3000, seed: int = 0, shards: int = 3) -> list[Path]:
    """Prompts are unit Gaussians; those of thumbs-up are moved by `shift` along the first axis."""
    random = np.random.default_rng(seed)
    table = []
    for i in range(rows):
        label = bool(random.random() < 0.4)
        embedding = random.normal(size=DIMENSION) + shift * label * np.eye(DIMENSION)[0]
        table.append({
            "file": "log", "position": i, "id": str(i), "source": None, "split": "train" if i % 20 else "validation",
            "prompt_hash": int(random.integers(-(2**63), 2**63)), "label": label, "weight": 1.0, "n_tokens": 3,
            "input_ids": [1, 2, 3], "completion_mask": [False, False, True], "reference_logp": -1.0,
            "embedding": embedding.tolist(),
        })  # fmt: skip
    for number in range(shards):
        part = pa.Table.from_pylist(table[number::shards], schema=REFERENCE)
        ShardWriter(directory, ("log",))(part)
    return sorted(directory.glob("*.parquet"))


def fit(shards: list[Path], mode: str = "auto"):  # type: ignore[no-untyped-def]
    return fit_matching(shards, mode=mode, min_density_ratio=0.5, max_density_ratio=10.0)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_no_shift_leaves_every_weight_at_1(tmp_path: Path, seed: int) -> None:
    shards = write_reference(tmp_path, shift=0.0, seed=seed)
    matching, report, _ = fit(shards)
    assert matching is None
    assert not report.applied
    assert report.auc is not None
    assert report.auc < 0.55
    assert "look alike" in report.reason


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_shift_is_found_and_weights_follow_it(tmp_path: Path, seed: int) -> None:
    shards = write_reference(tmp_path, shift=1.5, seed=seed)
    matching, report, mean = fit(shards)
    assert matching is not None
    assert report.applied
    assert report.auc is not None
    assert report.auc > 0.75
    WeightStage(tmp_path, tmp_path / "out", matching, mean)({"file": shards[0].name})
    scored, reference = pq.read_table(tmp_path / "out" / shards[0].name), pq.read_table(shards[0])
    weight, label = scored["weight"].to_numpy(), scored["label"].to_numpy()
    along = embeddings(reference)[:, 0]
    assert (weight[label] == 1.0).all()
    assert np.corrcoef(along[~label], weight[~label])[0, 1] > 0.6
    assert weight[~label & (along > 1.5)].mean() > 2 * weight[~label & (along < -0.5)].mean()
    assert "embedding" not in scored.column_names


def test_weights_of_thumbs_down_train_rows_average_1(tmp_path: Path) -> None:
    shards = write_reference(tmp_path, shift=1.5)
    matching, _, mean = fit(shards)
    weights = []
    for shard in shards:
        WeightStage(tmp_path, tmp_path / "out", matching, mean)({"file": shard.name})
        rows = pq.read_table(tmp_path / "out" / shard.name)
        train_down = ~rows["label"].to_numpy() & (rows["split"].to_numpy() == "train")
        weights.append(rows["weight"].to_numpy()[train_down])
    assert np.concatenate(weights).mean() == pytest.approx(1.0, abs=1e-6)


def test_on_forces_and_off_skips(tmp_path: Path) -> None:
    shards = write_reference(tmp_path, shift=0.0)
    assert fit(shards, "on")[0] is not None
    matching, report, mean = fit(shards, "off")
    assert (matching, report.applied, mean) == (None, False, 1.0)


def test_no_prompt_is_judged_by_a_model_that_saw_it(tmp_path: Path) -> None:
    """Labels that are pure noise, memorisable: out of fold there is nothing to gain from memorising."""
    shards = write_reference(tmp_path, shift=0.0, rows=200)
    matching, report, _ = fit(shards, "on")
    assert matching is not None
    assert len(matching.folds) == FOLDS
    assert report.auc is not None
    assert 0.3 < report.auc < 0.7
    hashes = np.array([-7, -7, 3, 2**62], dtype=np.int64)
    assert fold_of(hashes)[0] == fold_of(hashes)[1]
    assert ((fold_of(hashes) >= 0) & (fold_of(hashes) < FOLDS)).all()


def test_too_few_prompts_say_so(tmp_path: Path) -> None:
    matching, report, _ = fit(write_reference(tmp_path, shift=2.0, rows=20))
    assert matching is None
    assert "distinct prompts" in report.reason


def test_the_sample_is_bounded_and_does_not_depend_on_shard_order(tmp_path: Path) -> None:
    shards = write_reference(tmp_path, shift=0.5, rows=600)
    one, other = draw_sample(shards, rows_per_class=50), draw_sample(shards[::-1], rows_per_class=50)
    assert len(one.label_N) == 100
    assert sorted(one.prompt_hash_N) == sorted(other.prompt_hash_N)


def test_shard_facts_count_splits_and_labels(tmp_path: Path) -> None:
    (shard,) = write_reference(tmp_path, shift=0.0, rows=100, shards=1)
    rows = pq.read_table(shard)
    facts = shard_facts(shard.name, rows)
    assert facts.rows == 100
    assert facts.validation_chosen + facts.validation_rejected == 5
    assert facts.train_tokens == 95 * 3
