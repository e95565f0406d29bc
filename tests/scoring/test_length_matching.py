"""Length matching on reference shards: sums under the weights of matching, then the product of both in the column."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from bco_ray.objective.lengths import LengthSums
from bco_ray.schema import REFERENCE
from bco_ray.scoring.length_matching import LengthPass, match_lengths
from bco_ray.scoring.shards import WeightStage, completion_lengths, distinct_prompts, prompts_name, write_table
from bco_ray.storage import parquet


class ByPrompt:
    """Weighs thumbs-down rows by their prompt's embedding."""

    def weights(self, embedding_ND: np.ndarray, prompt_hash_N: np.ndarray, labels_N: np.ndarray) -> np.ndarray:
        return np.where(labels_N, 1.0, embedding_ND[:, 0].astype(float))


MATCHING: Any = ByPrompt()


def rows(seed: int, count: int = 300) -> pa.Table:
    """Ups are longer; one row in ten is held out; weights and prompts of all kinds."""
    random = np.random.default_rng(seed)
    made = []
    for n in range(count):
        length = int(random.integers(1, 14))
        label = bool(random.random() < 0.1 + 0.05 * length)
        made.append(
            {"file": "log", "position": n, "entry": 0, "id": f"{seed}-{n}", "user": None, "source": None,
             "split": "validation" if n % 10 == 0 else "train", "prompt_hash": int(random.integers(-9, 9)),
             "label": label, "weight": float(random.choice([0.5, 1.0, 2.0])), "n_tokens": 2 + length,
             "input_ids": [1] * (2 + length), "completion_mask": [False] * 2 + [True] * length, "reference_logp": -1.0}
        )  # fmt: skip
    return pa.Table.from_pylist(made, schema=REFERENCE)


@pytest.fixture
def shards(tmp_path: Path) -> list[Path]:
    paths = []
    for seed in range(3):
        path, table = tmp_path / "reference" / f"part-{seed:05}-0000.parquet", rows(seed)
        hashes = np.unique(table["prompt_hash"].to_numpy())
        write_table(path, table)
        write_table(path.with_name(prompts_name(path.name)),
                    distinct_prompts(table, (1 + np.abs(hashes)[:, None] / 9).astype(np.float32)))  # fmt: skip
        paths.append(path)
    return paths


def written(shards: list[Path], target: Path, matching: Any, lengths: Any) -> pa.Table:
    for path in shards:
        WeightStage(path.parent, target, matching, lengths)({"file": path.name})
    return pa.concat_tables([parquet.read_table(target / path.name) for path in shards])


def sums_of(table: pa.Table) -> LengthSums:
    train = table.filter(pa.array(np.array(table["split"].to_pylist()) == "train"))
    return LengthSums.of(
        completion_lengths(train), train["label"].to_numpy(), train["weight"].to_numpy().astype(np.float64)
    )


@pytest.mark.parametrize("matching", [None, MATCHING], ids=["alone", "with prompts matched"])
def test_written_weights_are_the_product_and_say_nothing_of_lengths(
    shards: list[Path], tmp_path: Path, matching: Any
) -> None:
    lengths, report = match_lengths(shards, matching)
    before, after = written(shards, tmp_path / "a", matching, None), written(shards, tmp_path / "b", matching, lengths)
    assert lengths is not None
    factors = lengths.weights(completion_lengths(before), before["label"].to_numpy())
    np.testing.assert_allclose(after["weight"].to_numpy(), before["weight"].to_numpy() * factors, rtol=1e-6)
    assert report["auc_before"] == pytest.approx(sums_of(before).auc())
    assert report["auc_after"] == pytest.approx(sums_of(after).auc())
    assert report["auc_before"] > 0.6
    assert report["auc_after"] == pytest.approx(0.5, abs=0.02)
    np.testing.assert_allclose(sums_of(after).weight_2L.sum(axis=1), sums_of(before).weight_2L.sum(axis=1), rtol=1e-6)
    assert report["ess_chosen_after"] < report["ess_chosen_before"] <= 1
    assert report["ess_rejected_after"] == pytest.approx(sums_of(after).ess_fraction()[0])


def test_held_out_rows_are_in_no_sum_and_order_of_shards_is_theirs(shards: list[Path]) -> None:
    of_each = [LengthPass(None)(path) for path in shards]
    assert sum(int(sums.count_2L.sum()) for sums in of_each) == 3 * 270
    one, _ = match_lengths(shards, None)
    again, _ = match_lengths(shards, None, lambda function, paths: iter([function(path) for path in paths]))
    assert one == again


def test_a_log_of_one_kind_has_no_lengths_to_match(tmp_path: Path) -> None:
    path, table = tmp_path / "part-00000-0000.parquet", rows(0)
    write_table(path, table.filter(table["label"]))
    lengths, report = match_lengths([path], None)
    assert lengths is None
    assert report == {"applied": False, "reason": "there are no votes of both kinds, whose lengths could be matched"}
    write_table(path, table.slice(0, 0))
    assert match_lengths([path], None)[0] is None


def test_lengths_are_of_completions_whatever_is_sliced() -> None:
    table = rows(1, 20)
    expected = [sum(mask) for mask in table["completion_mask"].to_pylist()]
    assert completion_lengths(table).tolist() == expected
    assert completion_lengths(table.slice(5, 7)).tolist() == expected[5:12]
    assert completion_lengths(table.slice(0, 0)).tolist() == []
