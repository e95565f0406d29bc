"""Checkpoints count when their manifest says so, are noticed when damaged, and leave in an order that loses none."""

from __future__ import annotations

import errno
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bco_ray.storage.checkpoints import CheckpointManifest, CheckpointStore, DamagedError, Keep, Mark, Place
from bco_ray.storage.stores import DirectoryStore, FileFact, put_bytes
from bco_ray.testing.faulty_store import Fault, FaultyStore


@pytest.fixture
def store(tmp_path: Path) -> FaultyStore:
    return FaultyStore(DirectoryStore(tmp_path / "checkpoints"))


@pytest.fixture
def checkpoints(store: FaultyStore) -> CheckpointStore:
    return CheckpointStore(store)


def write_bytes(data: bytes) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        path.write_bytes(data)

    return write


def make(
    checkpoints: CheckpointStore, step: int, *, attempt: int = 1, workers: int = 2, **metrics: float
) -> CheckpointManifest:
    """A committed one."""
    for rank in range(workers):
        checkpoints.put_shard(Place(step, attempt, rank, workers), write_bytes(b"share of %d" % rank))
    marks = checkpoints.marks(step, attempt, workers)
    assert marks is not None
    manifest = CheckpointManifest(
        step=step, attempt=attempt, workers=workers, layout="even", created_at=1.5, identity={"run": "mine"},
        state={"next_step": step, "shift": {"rows_seen": 17, "sums": [0.125, -3.5]}}, metrics=metrics,
        shards=[mark.file for mark in marks], files={mark.file: mark.fact for mark in marks},
    )  # fmt: skip
    checkpoints.commit(manifest)
    return manifest


class TestSeal:
    def test_there_and_back(self, checkpoints: CheckpointStore) -> None:
        manifest = make(checkpoints, 5, auc=0.75)
        assert checkpoints.manifest(5) == manifest
        assert CheckpointManifest.from_bytes(manifest.to_bytes(), "x") == manifest

    def test_every_changed_byte_of_a_manifest_is_noticed(self, checkpoints: CheckpointStore) -> None:
        """But one that leaves the same JSON (white space): that is no damage."""
        manifest = make(checkpoints, 5, auc=0.75)
        data = manifest.to_bytes()
        for position, byte in enumerate(data):
            flipped = data[:position] + bytes([byte ^ 1]) + data[position + 1 :]
            try:
                found = CheckpointManifest.from_bytes(flipped, "x")
            except DamagedError:
                continue
            assert found == manifest
            assert json.loads(flipped) == json.loads(data)

    @pytest.mark.parametrize(
        ("old", "new"),
        [
            ('"rows_seen": 17', '"rows_seen": 71'),
            ("-3.5", "3.5"),
            ('"workers": 2', '"workers": 1'),
            ('"bytes": 10', '"bytes": 11'),
            ('"run": "mine"', '"run": "mime"'),
            ('"auc": 0.75', '"auc": 0.85'),
            ("rank-00001", "rank-00002"),
        ],
    )
    def test_a_changed_value_is_noticed(
        self, checkpoints: CheckpointStore, store: FaultyStore, old: str, new: str
    ) -> None:
        make(checkpoints, 5, auc=0.75)
        text = store.get("00000005/manifest.json").decode()
        assert old in text
        put_bytes(store, "00000005/manifest.json", text.replace(old, new, 1).encode())
        with pytest.raises(DamagedError, match="00000005/manifest.json: damaged .its seal is broken"):
            checkpoints.manifest(5)

    def test_a_changed_digest_is_noticed(self, checkpoints: CheckpointStore, store: FaultyStore) -> None:
        manifest = make(checkpoints, 5)
        digest = next(iter(manifest.files.values())).sha256
        other = ("0" if digest[0] != "0" else "1") + digest[1:]
        text = store.get("00000005/manifest.json").decode()
        put_bytes(store, "00000005/manifest.json", text.replace(digest, other).encode())
        with pytest.raises(DamagedError):
            checkpoints.manifest(5)

    def test_every_truncation_is_noticed(self) -> None:
        data = Mark(file="x", fact=FileFact(bytes=3, sha256="0" * 64)).to_bytes()
        for length in range(len(data) - 1):  # the last byte is the end of the line
            with pytest.raises(DamagedError):
                Mark.from_bytes(data[:length], "x")

    @pytest.mark.parametrize(
        "data", [b"", b"\0" * 50, b"[]", b"7", b"null", b'"text"', b"{}", b'{"seal": "x"}', b"\xff"]
    )
    def test_what_is_no_manifest_is_damaged(self, data: bytes) -> None:
        with pytest.raises(DamagedError, match="name: damaged"):
            CheckpointManifest.from_bytes(data, "name")

    def test_a_manifest_in_the_wrong_place_is_damaged(self, checkpoints: CheckpointStore, store: FaultyStore) -> None:
        make(checkpoints, 5)
        put_bytes(store, "00000007/manifest.json", store.get("00000005/manifest.json"))
        with pytest.raises(DamagedError, match="of step 5"):
            checkpoints.manifest(7)


class TestCommit:
    def test_marks_are_those_of_all_ranks_of_this_attempt(self, checkpoints: CheckpointStore) -> None:
        for attempt, rank in ((1, 1), (2, 0)):
            checkpoints.put_shard(Place(5, attempt, rank, 2), write_bytes(b"1"))
            assert checkpoints.marks(5, attempt, 2) is None
        checkpoints.put_shard(Place(5, 2, 1, 2), write_bytes(b"22"))
        marks = checkpoints.marks(5, 2, 2)
        assert marks is not None
        assert [(mark.file, mark.fact.bytes) for mark in marks] == [
            ("00000005/a002-rank-00000-of-00002.safetensors", 1), ("00000005/a002-rank-00001-of-00002.safetensors", 2),
        ]  # fmt: skip

    def test_only_a_manifest_makes_it_count(self, checkpoints: CheckpointStore, store: FaultyStore) -> None:
        checkpoints.put_shard(Place(5, 1, 0, 1), write_bytes(b"1"))
        assert checkpoints.steps() == []
        store.add(Fault("put", "*/manifest.json"))
        with pytest.raises(OSError, match="No space left"):
            make(checkpoints, 5, workers=1)
        assert checkpoints.steps() == []
        make(checkpoints, 5, workers=1)
        assert checkpoints.steps() == [5]

    def test_a_mark_is_written_after_the_share(self, checkpoints: CheckpointStore, store: FaultyStore) -> None:
        store.add(Fault("put", "*.safetensors"))
        with pytest.raises(OSError, match="No space left"):
            checkpoints.put_shard(Place(5, 1, 0, 1), write_bytes(b"1"))
        assert checkpoints.marks(5, 1, 1) is None
        assert store.sizes() == {}

    def test_what_earlier_attempts_left_goes_and_later_ones_stay(
        self, checkpoints: CheckpointStore, store: FaultyStore
    ) -> None:
        for attempt in (1, 3):
            checkpoints.put_shard(Place(5, attempt, 0, 1), write_bytes(b"1"))
        put_bytes(store, "00000005/.a001-rank-00003-of-00004.safetensors.0f.tmp", b"scratch")
        make(checkpoints, 5, attempt=2)
        left = {name.partition("/")[2] for name in store.sizes("00000005")}
        assert left == {"manifest.json"} | {
            f"a00{attempt}-rank-0000{rank}-of-0000{workers}.{kind}"
            for attempt, rank, workers in ((2, 0, 2), (2, 1, 2), (3, 0, 1))
            for kind in ("safetensors", "json")
        }

    def test_it_counts_even_if_what_was_left_cannot_go(self, checkpoints: CheckpointStore, store: FaultyStore) -> None:
        checkpoints.put_shard(Place(5, 1, 0, 1), write_bytes(b"1"))
        store.add(Fault("delete"))
        make(checkpoints, 5, attempt=2)
        assert checkpoints.steps() == [5]


class TestVerified:
    @pytest.mark.parametrize("data", [b"share of !", b"share of", b"share of 0 and more", b""])
    def test_other_bytes_are_damage(self, checkpoints: CheckpointStore, store: FaultyStore, data: bytes) -> None:
        manifest = make(checkpoints, 5)
        put_bytes(store, manifest.shards[0], data)
        with (
            pytest.raises(DamagedError, match="not what manifest.json says"),
            checkpoints.verified(manifest, manifest.shards[0]),
        ):
            pass
        with checkpoints.verified(manifest, manifest.shards[1]) as path:
            assert path.read_bytes() == b"share of 1"

    def test_a_missing_one_is_damage(self, checkpoints: CheckpointStore, store: FaultyStore) -> None:
        manifest = make(checkpoints, 5)
        store.delete(manifest.shards[0])
        with pytest.raises(DamagedError, match="missing, but"), checkpoints.verified(manifest, manifest.shards[0]):
            pass

    def test_what_cannot_be_read_is_none(self, checkpoints: CheckpointStore, store: FaultyStore) -> None:
        manifest = make(checkpoints, 5)
        store.add(Fault("local", code=errno.EIO))
        with pytest.raises(OSError, match="Input/output"), checkpoints.verified(manifest, manifest.shards[0]):
            pass

    def test_a_reader_that_misses_a_file_of_its_own_is_no_damage(self, checkpoints: CheckpointStore) -> None:
        manifest = make(checkpoints, 5)
        with pytest.raises(FileNotFoundError), checkpoints.verified(manifest, manifest.shards[0]):
            raise FileNotFoundError("something else")


class TestGoing:
    def test_one_set_aside_counts_no_more_and_can_be_looked_at(
        self, checkpoints: CheckpointStore, store: FaultyStore
    ) -> None:
        make(checkpoints, 5)
        before = store.get("00000005/manifest.json")
        checkpoints.set_aside(5)
        assert checkpoints.steps() == []
        assert store.get("00000005/manifest.json.damaged") == before
        assert len(store.sizes("00000005")) == 5

    def test_discarding_takes_the_mark_off_first(self, checkpoints: CheckpointStore, store: FaultyStore) -> None:
        make(checkpoints, 5)
        store.calls.clear()
        checkpoints.discard(5)
        deleted = [name for operation, name in store.calls if operation == "delete"]
        assert deleted[0] == "00000005/manifest.json"
        assert store.sizes() == {}

    def test_half_a_discard_is_swept_up_later(self, checkpoints: CheckpointStore, store: FaultyStore) -> None:
        make(checkpoints, 5)
        store.add(Fault("delete", "*.safetensors"))
        with pytest.raises(OSError, match="No space left"):
            checkpoints.discard(5)
        assert checkpoints.steps() == []
        checkpoints.sweep(6, 1)
        assert store.sizes() == {}

    def test_sweeping_leaves_what_counts_and_what_is_newer(
        self, checkpoints: CheckpointStore, store: FaultyStore
    ) -> None:
        make(checkpoints, 5, attempt=2)
        make(checkpoints, 6, attempt=2)
        checkpoints.set_aside(6)
        for step, attempt in ((7, 1), (7, 2), (7, 3), (8, 2), (9, 2)):
            checkpoints.put_shard(Place(step, attempt, 0, 1), write_bytes(b"1"))
        put_bytes(store, "00000007/.tmpk3x9", b"of a writer that was killed")
        put_bytes(store, "notes/what.txt", b"somebody's")
        before = set(store.sizes())
        checkpoints.sweep(8, 2)
        gone = before - set(store.sizes())
        damaged = {name for name in before if name.startswith("00000006/")}
        assert gone == damaged | {"00000007/.tmpk3x9"} | {
            f"00000007/a00{attempt}-rank-00000-of-00001.{kind}"
            for attempt in (1, 2)
            for kind in ("safetensors", "json")
        }


class TestRetain:
    @pytest.mark.parametrize(
        ("keep", "left"),
        [
            (Keep(last=1), [40]),
            (Keep(last=2), [30, 40]),
            (Keep(last=0), [40]),
            (Keep(last=9), [10, 20, 30, 40]),
            (Keep(last=1, best=1), [20, 40]),
            (Keep(last=1, best=2), [20, 30, 40]),
            (Keep(last=1, best=1, metric="loss"), [10, 40]),
            (Keep(last=1, best=2, metric="loss"), [10, 20, 40]),
            (Keep(last=1, best=3, metric="nobody measures"), [40]),
        ],
    )
    def test_the_newest_and_the_best_stay(self, checkpoints: CheckpointStore, keep: Keep, left: list[int]) -> None:
        """AUC: the larger the better; loss: the smaller."""
        for step, auc, loss in ((10, 0.5, 0.1), (20, 0.9, 0.2), (30, 0.7, 0.3), (40, 0.6, 0.4)):
            make(checkpoints, step, auc=auc, loss=loss)
        gone = checkpoints.retain(keep)
        assert checkpoints.steps() == left
        assert gone == [step for step in (10, 20, 30, 40) if step not in left]

    def test_one_without_the_metric_is_never_the_best(self) -> None:
        rated: dict[int, dict[str, Any]] = {1: {"auc": 0.1}, 2: {}, 3: {"loss": 9.0}, 4: {}}
        assert Keep(last=1, best=2).chosen(rated) == {1, 4}

    def test_of_equals_the_newest_is_kept(self) -> None:
        assert Keep(last=1, best=1).chosen({1: {"auc": 0.5}, 2: {"auc": 0.5}, 3: {"auc": 0.1}}) == {2, 3}

    def test_a_damaged_one_neither_counts_nor_goes(self, checkpoints: CheckpointStore, store: FaultyStore) -> None:
        """It is newer than the only good one, which must stay."""
        make(checkpoints, 10)
        for step in (20, 30):
            make(checkpoints, step)
            put_bytes(store, f"{step:08d}/manifest.json", b"\0" * 100)
        before = store.sizes()
        assert checkpoints.retain(Keep(last=1)) == []
        assert store.sizes() == before

    def test_one_that_cannot_be_read_stops_everything(self, checkpoints: CheckpointStore, store: FaultyStore) -> None:
        for step in (10, 20, 30):
            make(checkpoints, step)
        store.add(Fault("get", "00000030/*", code=errno.EIO))
        with pytest.raises(OSError, match="Input/output"):
            checkpoints.retain(Keep(last=1))
        assert checkpoints.steps() == [10, 20, 30]
