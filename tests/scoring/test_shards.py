"""Finished shards: a row's weight is its own times its prompt's, looked up among the shard's distinct prompts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from bco_ray.schema import PROMPTS, REFERENCE, SCORED
from bco_ray.scoring.shards import WeightStage, distinct_prompts, prompts_name, shard_facts, write_table
from bco_ray.storage import files

NAME = "part-00001-0002.parquet"


class Doubling:
    """Weighs thumbs-down rows by their prompt's embedding."""

    def weights(self, embedding_ND: np.ndarray, prompt_hash_N: np.ndarray, labels_N: np.ndarray) -> np.ndarray:
        assert embedding_ND[:, 1].tolist() == prompt_hash_N.tolist()
        return np.where(labels_N, 1.0, embedding_ND[:, 0].astype(float))


def reference(*votes: tuple[int, bool, float, str]) -> pa.Table:
    rows = [
        {"file": "log", "position": n, "entry": 0, "id": str(n), "user": None, "source": None, "split": split,
         "prompt_hash": hashed, "label": label, "weight": weight, "n_tokens": 3, "input_ids": [1, 2, 3],
         "completion_mask": [False, False, True], "reference_logp": -1.0}
        for n, (hashed, label, weight, split) in enumerate(votes)
    ]  # fmt: skip
    return pa.Table.from_pylist(rows, schema=REFERENCE)


ROWS = reference((-7, True, 1, "train"), (-7, False, 2, "train"), (3, False, 1, "train"), (9, True, 1, "validation"))
EMBEDDING_PD = np.array([[10.0, -7.0], [20.0, 3.0], [30.0, 9.0]], np.float32)


def weigh(tmp_path: Path, rows: pa.Table, matching: Any) -> pa.Table:
    write_table(tmp_path / "reference" / NAME, rows)
    write_table(tmp_path / "reference" / prompts_name(NAME), distinct_prompts(rows, EMBEDDING_PD))
    said = WeightStage(tmp_path / "reference", tmp_path, matching)({"file": NAME})
    assert said == {"file": NAME, **files.file_facts(tmp_path / NAME)}
    return pq.read_table(tmp_path / NAME)


def test_distinct_prompts_count_both_kinds_of_votes() -> None:
    prompts = distinct_prompts(ROWS, EMBEDDING_PD)
    assert prompts.schema == PROMPTS
    assert prompts.to_pylist()[0] == {
        "prompt_hash": -7, "split": "train", "chosen": 1, "rejected": 1,
        "embedding": np.array([10.0, -7.0], "<f4").tobytes(),
    }  # fmt: skip
    assert prompts.select(["split", "chosen", "rejected"]).to_pylist()[1:] == [
        {"split": "train", "chosen": 0, "rejected": 1},
        {"split": "validation", "chosen": 1, "rejected": 0},
    ]
    assert distinct_prompts(reference(), np.zeros((0, 2), np.float32)).num_rows == 0


def test_weights_multiply_those_of_the_log(tmp_path: Path) -> None:
    shard = weigh(tmp_path, ROWS, Doubling())
    assert shard.schema == SCORED
    assert shard["weight"].to_pylist() == [1.0, 20.0, 20.0, 1.0]
    assert shard.drop_columns("weight").equals(ROWS.drop_columns("weight").cast(shard.drop_columns("weight").schema))


def test_without_matching_weights_stay(tmp_path: Path) -> None:
    assert weigh(tmp_path, ROWS, None)["weight"].to_pylist() == [1.0, 2.0, 1.0, 1.0]


def test_facts_count_by_split_and_label() -> None:
    facts = shard_facts(NAME, ROWS)
    assert (facts.train_chosen, facts.train_rejected) == (1, 2)
    assert (facts.validation_chosen, facts.validation_rejected) == (1, 0)
    assert (facts.rows, facts.train_tokens) == (4, 9)
    assert shard_facts(NAME, reference()).rows == 0


def test_embeddings_are_stored_as_they_are(tmp_path: Path) -> None:
    write_table(tmp_path / NAME, distinct_prompts(ROWS, EMBEDDING_PD))
    group = pq.ParquetFile(tmp_path / NAME).metadata.row_group(0)
    columns = {column.path_in_schema: column for column in (group.column(n) for n in range(group.num_columns))}
    assert columns["embedding"].compression == "UNCOMPRESSED"
    assert not columns["embedding"].has_dictionary_page
    assert columns["prompt_hash"].compression == "ZSTD"
    assert EMBEDDING_PD.tobytes()[:8] in (tmp_path / NAME).read_bytes()


def test_a_part_without_rows_has_nothing_to_weigh(tmp_path: Path) -> None:
    write_table(tmp_path / "reference" / NAME, reference())
    write_table(tmp_path / "reference" / prompts_name(NAME), distinct_prompts(reference(), np.zeros((0,), np.float32)))
    WeightStage(tmp_path / "reference", tmp_path, Doubling())({"file": NAME})  # type: ignore[arg-type]
    assert pq.read_table(tmp_path / NAME).num_rows == 0
