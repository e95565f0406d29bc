"""Storage in an object store does what it does on a disk: paths, files, directories that count, locks."""

from __future__ import annotations

import pickle
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bco_ray.errors import SpecError, StorageError
from bco_ray.storage import files, object_lock, parquet
from bco_ray.storage.growing import LineTail, Uploaded
from bco_ray.storage.local_copies import local_copy
from bco_ray.storage.locations import Found
from bco_ray.storage.objects import ObjectPath
from bco_ray.storage.registry import Registry
from bco_ray.storage.run_journal import JournalTail, RunJournal


@pytest.fixture
def place(bucket: str, request: pytest.FixtureRequest) -> Any:
    """Below the bucket, a prefix of the test's own."""
    return files.path_of(f"{bucket}/{request.node.name}")


def test_a_path_is_written_as_its_uri_and_keeps_it() -> None:
    path: Any = ObjectPath("s3://bucket/a/b.txt")
    assert str(path) == f"{path}" == "s3://bucket/a/b.txt"
    assert str(path.parent / "c.json") == "s3://bucket/a/c.json"
    assert (path.name, path.stem, path.suffix) == ("b.txt", "b", ".txt")
    assert path.relative_to(ObjectPath("s3://bucket")).as_posix() == "a/b.txt"
    assert str(path.with_name("d")) == "s3://bucket/a/d"
    assert path.resolve() == path.absolute() == path.expanduser() == ObjectPath(str(path))
    assert pickle.loads(pickle.dumps(path)) == path
    assert str(pickle.loads(pickle.dumps(path))) == str(path)
    assert isinstance(path / "more", ObjectPath)
    assert sorted([path, path.parent]) == [path.parent, path]


def test_it_is_no_path_of_the_operating_system() -> None:
    with pytest.raises(TypeError, match=r"s3://bucket/a: not a path of the operating system"):
        open(ObjectPath("s3://bucket/a"))  # noqa: PTH123, SIM115


@pytest.mark.parametrize("text", ["s3://bucket/prefix", "gs://bucket/prefix"])
def test_a_uri_is_an_object_path_and_all_else_a_path(text: str) -> None:
    assert isinstance(files.path_of(text), ObjectPath)
    assert isinstance(files.storage_directory(text + "/"), ObjectPath)
    assert str(files.storage_directory(text + "/")) == text
    assert type(files.path_of("runs")) is type(Path("runs"))


@pytest.mark.parametrize("text", ["hf://datasets/a/b", "http://host/x"])
def test_what_cannot_be_written_to_is_no_storage(text: str) -> None:
    with pytest.raises(SpecError, match="s3:// and gs://"):
        files.storage_directory(text)


def test_files_and_directories(place: Any) -> None:
    assert not place.exists()
    assert list(place.iterdir()) == list(place.rglob("*")) == []
    files.write_json(place / "a" / "x.json", {"n": 1})
    files.write_bytes(place / "a" / "deep" / "y.bin", b"12345")
    assert files.read_json(place / "a" / "x.json") == {"n": 1}
    assert (place / "a").is_dir()
    assert not (place / "a").is_file()
    assert (place / "a" / "x.json").is_file()
    assert (place / "a" / "deep" / "y.bin").stat().st_size == 5
    assert [path.name for path in (place / "a").iterdir()] == ["deep", "x.json"]
    assert [path.name for path in place.rglob("*.bin")] == ["y.bin"]
    assert [path.name for path in (place / "a").glob("*.json")] == ["x.json"]
    with (place / "a" / "deep" / "y.bin").open("rb") as file:
        file.seek(2)
        assert file.read() == b"345"
    (place / "a" / "x.json").unlink()
    (place / "a" / "x.json").unlink(missing_ok=True)
    with pytest.raises(FileNotFoundError, match=r"x\.json: no such object"):
        (place / "a" / "x.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"x\.json: cannot be read"):
        (place / "a" / "x.json").read_bytes()
    with pytest.raises(StorageError, match=r"x\.json: missing"):
        files.read_json(place / "a" / "x.json")
    files.remove_tree(place / "a")
    assert list(place.rglob("*")) == []


def test_a_store_that_cannot_be_asked_is_an_os_error(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "x")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    path = ObjectPath("s3://nobody/there")
    acts: list[Callable[[], Any]] = [path.exists, path.read_bytes, lambda: path.write_bytes(b"1"), path.iterdir]
    for act in acts:
        with pytest.raises(OSError, match="s3://nobody/there"):
            act()


def test_a_directory_counts_with_its_manifest(place: Any) -> None:
    files.write_bytes(place / "part-1", b"one")
    files.write_bytes(place / "part-2", b"two")
    assert not files.is_committed(place)
    with files.locked(place / ".lock"):
        files.commit_directory(place, {"what": "parts"}, {"part-1": files.facts_of(b"one")})
    manifest = files.verify_directory(place)
    assert manifest["files"] == {"part-1": files.facts_of(b"one"), "part-2": files.facts_of(b"two")}
    files.write_bytes(place / "part-2", b"2")
    with pytest.raises(StorageError, match="part-2"):
        files.verify_directory(place)
    files.clear_directory(place)
    assert list(place.rglob("*")) == []


def test_a_new_directory_is_there_whole_or_not_at_all(place: Any) -> None:
    made = place / "made"

    def broken() -> None:
        with files.new_directory(made) as scratch:
            (scratch / "a").write_bytes(b"1")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        broken()
    assert not files.is_there(made)
    assert not made.exists()
    files.write_bytes(made / "of a killed writer", b"")
    with files.new_directory(made) as scratch:
        (scratch / "a").write_bytes(b"1")
        (scratch / "below").mkdir()
        (scratch / "below" / "b").write_bytes(b"2")
        assert not files.is_there(made)
    assert files.is_there(made)
    assert [path.relative_to(made).as_posix() for path in made.rglob("*")] == ["a", "below/b"]
    files.remove_tree(made)
    assert not files.is_there(made)


def test_a_table_is_read_in_part(place: Any) -> None:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({"a": [1, 2], "b": ["x", "y"]}).replace_schema_metadata({"k": "v"}), sink)
    files.write_bytes(place / "t.parquet", sink.getvalue().to_pybytes())
    assert parquet.read_table(place / "t.parquet", columns=["b"]).to_pylist() == [{"b": "x"}, {"b": "y"}]
    assert parquet.read_metadata(place / "t.parquet").num_rows == 2
    assert parquet.read_schema(place / "t.parquet").metadata[b"k"] == b"v"
    with pytest.raises(FileNotFoundError):
        parquet.read_table(place / "none.parquet")


def test_one_at_a_time(place: Any) -> None:
    inside, most, total = 0, 0, 0

    def work() -> None:
        nonlocal inside, most, total
        for _ in range(3):
            with files.locked(place / ".lock"):
                inside += 1
                most = max(most, inside)
                before = total
                pause.wait(0.01)
                total = before + 1
                inside -= 1

    pause = threading.Event()
    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert (most, total) == (1, 12)
    assert list(place.rglob("*")) == []


def test_who_cannot_wait_is_told(place: Any) -> None:
    with (
        files.locked(place / ".lock"),
        pytest.raises(StorageError, match="busy now"),
        files.locked(place / ".lock", busy="busy now", seconds=0.1),
    ):
        pass


def test_a_dead_holder_lets_go(place: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    (place / ".lock" / "of a killed process").write_bytes(b"")
    with pytest.raises(StorageError, match="busy"), files.locked(place / ".lock", busy="busy", seconds=0.1):
        pass
    monkeypatch.setattr(object_lock, "DEAD_SECONDS", -1.0)
    with files.locked(place / ".lock", busy="busy", seconds=0.1):
        assert [path.name for path in (place / ".lock").iterdir()] != ["of a killed process"]


def test_a_holder_that_stood_still_is_told(place: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(object_lock, "SURE_SECONDS", -1.0)
    with pytest.raises(StorageError, match="taken over"), files.locked(place / ".lock"):
        pass
    files.write_bytes(place / "part", b"1")

    def committed() -> None:
        with files.locked(place / ".lock"):
            files.commit_directory(place, {})

    with pytest.raises(StorageError, match="taken over"):
        committed()
    assert not files.is_committed(place)


def test_a_growing_file_is_followed(place: Any) -> None:
    tail, grown = LineTail(place / "m.jsonl"), Uploaded(place / "m.jsonl", lambda: None)
    assert tail.read() == []
    with grown.local.open("ab") as file:
        file.write(b"1\n2\n3")
    grown.upload()
    assert tail.read() == [b"1", b"2"]
    assert tail.read() == []
    with grown.local.open("ab") as file:
        file.write(b"\n4\n")
    grown.upload()
    assert tail.read() == [b"3", b"4"]
    files.write_bytes(place / "m.jsonl", b"1\n2\n9\n8\n5\n")  # replaced by a longer one
    assert tail.read() == [b"1", b"2", b"9", b"8", b"5"]
    files.write_bytes(place / "m.jsonl", b"1\n")
    assert tail.read() == [b"1"]
    assert Uploaded(place / "m.jsonl", lambda: None).local.read_bytes() == b"1\n"


def test_a_journal_of_many_writers(place: Any) -> None:
    driver, worker, tail = RunJournal(place), RunJournal(place), JournalTail(place)
    driver.write("attempt", workers=2)
    assert [event["event"] for event in tail.read()] == ["attempt"]
    mark = driver.mark
    worker.write("placed", rank=0)
    driver.write("waiting", room=1)
    assert [event["event"] for event in driver.read(since=mark)] == ["placed", "waiting"]
    assert [event["event"] for event in tail.read()] == ["placed", "waiting"]
    assert tail.read() == []
    assert [event["event"] for event in worker.read()] == ["attempt", "placed", "waiting"]


def test_what_libraries_read_is_copied_once(place: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BCO_CACHE", str(tmp_path / "cache"))
    files.write_bytes(place / "m" / "config.json", b"{}")
    files.write_bytes(place / "m" / "sub" / "model.safetensors", b"weights")
    small = local_copy(place / "m", weights=False)
    assert [path.name for path in small.rglob("*")] == ["config.json"]
    copy = local_copy(str(place / "m"))
    assert copy.name == "m"
    assert (copy / "sub" / "model.safetensors").read_bytes() == b"weights"
    before = (copy / "config.json").stat()
    assert local_copy(place / "m") == copy
    assert (copy / "config.json").stat() == before
    files.write_bytes(place / "m" / "config.json", b"{ }")
    assert (local_copy(place / "m") / "config.json").read_bytes() == b"{ }"
    assert local_copy(tmp_path) == tmp_path
    with pytest.raises(FileNotFoundError):
        local_copy(place / "nothing")


def test_a_registry(place: Any, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    registry = Registry(place)
    assert registry.names() == []
    first = registry.register("bot", tmp_path, {"run": "r1"})
    assert registry.register("bot", tmp_path, {"run": "r1"}) == first
    second = registry.register("bot", tmp_path, {"run": "r2"})
    assert (first.reference, second.reference) == ("bot/1", "bot/2")
    assert registry.names() == ["bot"]
    assert registry.verify("bot", 2)
    assert registry.promote("bot", 1) is None
    assert registry.promote("bot", 2, expected=1) == 1
    assert registry.resolve("bot").reference == "bot/2"
    assert registry.rollback("bot") == (1, 2)
    assert registry.resolve("bot@prod").directory == place / "models" / "bot" / "1"
    registry.promote("bot", 2, "candidate")
    registry.set_canary("bot", 10)
    assert Registry(place).state("bot").percent == 10


def test_a_version_half_uploaded_is_none(place: Any, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    registry = Registry(place)
    files.write_bytes(place / "models" / "bot" / "1" / "lineage.json", b"{}")
    files.write_bytes(place / "models" / "bot" / "1" / "old.bin", b"")
    assert registry.versions("bot") == []
    version = registry.register("bot", tmp_path, {"run": "r"})
    assert version.reference == "bot/1"
    assert not (version.directory / "old.bin").exists()


def test_a_claim_that_comes_back_late_is_none(place: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(object_lock, "RENEWED_SECONDS", 0.01)
    monkeypatch.setattr(object_lock, "SURE_SECONDS", 0.5)
    slow, write = threading.Event(), ObjectPath.write_bytes

    def late(path: ObjectPath, data: bytes) -> int:
        slow.wait(1.0)
        return write(path, data)

    def stood_still() -> None:
        with files.locked(place / ".lock"):
            monkeypatch.setattr(ObjectPath, "write_bytes", late)
            slow.wait(1.5)

    with pytest.raises(StorageError, match="taken over"):
        stood_still()
    assert not list((place / ".lock").rglob("*"))


def test_a_name_that_leads_out_is_refused(place: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BCO_CACHE", str(tmp_path / "cache"))
    with pytest.raises(SpecError, match=r"no '\.\.' in a URI"):
        files.path_of("s3://bucket/a/../b")
    found = [Found(f"{place}/m/../../evil.txt", 1, 0, False)]
    monkeypatch.setattr(ObjectPath, "entries", lambda *_, **__: found)
    with pytest.raises(StorageError, match="rename or remove"):
        local_copy(place / "m")
    with pytest.raises(OSError, match="rename or remove"):
        list((place / "m").objects())


def test_what_was_said_to_be_written_must_be_there(place: Any) -> None:
    files.write_bytes(place / "part-1", b"one")
    with pytest.raises(StorageError, match="part-2: it was written, and is not there"):
        files.commit_directory(place, {}, {"part-2": files.facts_of(b"two")})


def test_two_may_remove_the_same(place: Any) -> None:
    files.write_bytes(place / "x", b"")
    errors: list[BaseException] = []

    def remove() -> None:
        try:
            (place / "x").unlink(missing_ok=True)
        except OSError as error:
            errors.append(error)

    threads = [threading.Thread(target=remove) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert errors == []


def test_who_was_given_up_for_dead_uploads_no_more(place: Any) -> None:
    class StaleError(Exception):
        pass

    def stale() -> None:
        raise StaleError

    files.write_bytes(place / "m.jsonl", b"theirs\n")
    grown = Uploaded(place / "m.jsonl", stale)
    with pytest.raises(StaleError):
        grown.changed()
    assert (place / "m.jsonl").read_bytes() == b"theirs\n"
