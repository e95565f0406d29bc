"""Erasing rows from finished shards: the words and the name go, place and counts stay, the manifest follows."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from bco_ray.errors import StorageError
from bco_ray.schema import SCORED
from bco_ray.storage import files
from bco_ray.storage.scored import ScoredManifest, ShardFacts, commit_scored, load_scored, source_weights, tombstone


def write(directory: Path) -> ScoredManifest:
    facts = []
    for number in range(2):
        name = f"part-{number:05d}-0000.parquet"
        rows = [
            {"file": "log", "position": n, "entry": 0, "id": f"v{number}{n}", "user": f"u-{n % 2}", "source": "s",
             "split": "train", "prompt_hash": n, "label": n < 2, "weight": 1.5, "n_tokens": 4,
             "input_ids": [5, 6, 7, 8], "completion_mask": [False, False, True, True], "reference_logp": -3.0}
            for n in range(3)
        ]  # fmt: skip
        directory.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.Table.from_pylist(rows, schema=SCORED), directory / name)
        facts.append(ShardFacts(file=name, train_chosen=2, train_rejected=1, validation_chosen=0,
                                validation_rejected=0, train_tokens=12))  # fmt: skip
    manifest = ScoredManifest(inputs={}, read=6, kept=6, drops={}, matching={}, shards=facts)
    commit_scored(directory, manifest)
    return manifest


def of_user(user: str):  # type: ignore[no-untyped-def]
    return lambda rows: pc.fill_null(pc.equal(rows["user"], user), False)


def test_erased_rows_keep_their_place_and_nothing_else(tmp_path: Path) -> None:
    manifest = write(tmp_path)
    assert tombstone(tmp_path, of_user("u-1")) == 2
    table = pq.read_table(tmp_path / manifest.shards[0].file)
    assert table.schema == SCORED
    kept, erased, _ = table.to_pylist()
    assert (kept["id"], kept["input_ids"], kept["weight"]) == ("v00", [5, 6, 7, 8], 1.5)
    assert erased == {
        "file": "log", "position": 1, "entry": 0, "id": None, "user": None, "source": "s", "split": "train",
        "prompt_hash": 1, "label": True, "weight": 0.0, "n_tokens": 2, "input_ids": [0, 0],
        "completion_mask": [False, True], "reference_logp": 0.0,
    }  # fmt: skip
    assert load_scored(tmp_path) == manifest
    files.verify_directory(tmp_path)
    assert tombstone(tmp_path, of_user("u-1")) == 0


def test_nothing_to_erase_changes_nothing(tmp_path: Path) -> None:
    write(tmp_path)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    assert tombstone(tmp_path, of_user("nobody")) == 0
    assert before == {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}


def test_an_erasure_that_was_cut_off_is_completed_by_the_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path)
    write_bytes = files.write_bytes

    def dies(path: Path, data: bytes) -> None:
        if path.suffix == ".parquet":
            raise OSError("killed")
        write_bytes(path, data)

    with monkeypatch.context() as patch:
        patch.setattr(files, "write_bytes", dies)
        with pytest.raises(OSError, match="killed"):
            tombstone(tmp_path, of_user("u-1"))
    with pytest.raises(StorageError):
        files.verify_directory(tmp_path)
    assert tombstone(tmp_path, of_user("u-1")) == 2
    files.verify_directory(tmp_path)


def test_weights_by_source_are_those_of_train_rows(tmp_path: Path) -> None:
    """Over all shards; a row that is erased weighs nothing, one that is held out is not counted."""
    manifest = write(tmp_path)
    assert source_weights(tmp_path, manifest) == {"s": (6.0, 3.0)}
    path = tmp_path / manifest.shards[1].file
    rows = pq.read_table(path).to_pylist()
    rows[0] |= {"source": None, "weight": 0.25}
    rows[1] |= {"split": "validation"}
    pq.write_table(pa.Table.from_pylist(rows, schema=SCORED), path)
    assert source_weights(tmp_path, manifest) == {"s": (3.0, 3.0), None: (0.25, 0.0)}
    tombstone(tmp_path, of_user("u-0"))
    assert source_weights(tmp_path, manifest) == {"s": (1.5, 0.0), None: (0.0, 0.0)}
