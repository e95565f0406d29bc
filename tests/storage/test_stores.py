"""One contract, kept by a directory and by an object store: a name holds all of what was last put there, or nothing."""

from __future__ import annotations

import errno
import uuid
from pathlib import Path

import pytest

from bco_ray.errors import SpecError
from bco_ray.storage.disk_errors import disk_errors
from bco_ray.storage.stores import DirectoryStore, FileFact, ObjectStore, Store, open_store, put_bytes
from bco_ray.testing.faulty_store import Fault, FaultyStore

SHA256_OF_ABC = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


@pytest.fixture(params=["directory", "s3"])
def uri(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Where nothing is yet."""
    if request.param == "directory":
        return str(tmp_path / "store")
    return f"{request.getfixturevalue('bucket')}/{uuid.uuid4().hex}"


@pytest.fixture
def store(uri: str) -> Store:
    return open_store(uri)


def test_bytes_there_and_back(store: Store) -> None:
    fact = put_bytes(store, "a/b.bin", b"abc")
    assert fact == FileFact(bytes=3, sha256=SHA256_OF_ABC)
    assert store.get("a/b.bin") == b"abc"
    with store.local("a/b.bin") as path:
        assert path.read_bytes() == b"abc"
        assert FileFact.of(path) == fact


def test_the_last_one_counts(store: Store) -> None:
    for data in (b"a longer one", b"abc", b""):
        put_bytes(store, "a/b", data)
        assert store.get("a/b") == data
        assert store.sizes() == {"a/b": len(data)}


def test_more_than_is_copied_at_once(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bco_ray.storage.stores.COPIED_AT_ONCE", 1000)
    data = bytes(range(256)) * 41
    put_bytes(store, "large", data)
    assert store.get("large") == data
    with store.local("large") as path:
        assert path.read_bytes() == data


def test_sizes_are_those_of_files_below(store: Store) -> None:
    assert store.sizes() == store.sizes("nothing/here") == {}
    for name in ("7/a", "7/deep/b", "70/c", "top"):
        put_bytes(store, name, name.encode())
    assert store.sizes() == {"7/a": 3, "7/deep/b": 8, "70/c": 4, "top": 3}
    assert store.sizes("7") == {"7/a": 3, "7/deep/b": 8}


def test_delete(store: Store) -> None:
    store.delete("never/was")
    put_bytes(store, "a/b", b"1")
    put_bytes(store, "a/c", b"2")
    store.delete("a/b")
    assert store.sizes() == {"a/c": 1}
    store.delete("a/c")
    store.delete("a/c")
    assert store.sizes() == {}


@pytest.mark.parametrize("name", ["nothing", "no/where"])
def test_what_is_missing_is_said_to_be(store: Store, name: str) -> None:
    put_bytes(store, "something", b"1")
    with pytest.raises(FileNotFoundError):
        store.get(name)
    with pytest.raises(FileNotFoundError), store.local(name) as path:
        path.read_bytes()


@pytest.mark.parametrize("before", [None, b"what was there"])
def test_a_write_that_fails_leaves_things_as_they_were(store: Store, before: bytes | None) -> None:
    if before is not None:
        put_bytes(store, "a/b", before)

    def write(path: Path) -> None:
        path.write_bytes(b"half of i")
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        store.put("a/b", write)
    assert store.sizes() == ({} if before is None else {"a/b": len(before)})


def test_an_object_store_out_of_reach_is_an_os_error(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    store = ObjectStore(f"{bucket}/x")
    for call in (store.sizes, lambda: store.get("a"), lambda: put_bytes(store, "a", b""), lambda: store.delete("a")):
        with pytest.raises(OSError, match=r"AWS_ENDPOINT_URL"):
            call()


def test_a_bucket_that_is_not_there_is_an_os_error(bucket: str) -> None:
    assert bucket
    store = ObjectStore("s3://no-such-bucket/x")
    with pytest.raises(OSError, match="no-such-bucket"):
        put_bytes(store, "a", b"")


def test_a_directory_that_cannot_be_written_is_an_os_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OSError, match="file"):
        put_bytes(DirectoryStore(tmp_path / "file"), "a/b", b"1")


def test_a_scheme_that_nobody_knows_is_refused_at_once() -> None:
    with pytest.raises(SpecError, match="unknown kind of storage"):
        open_store("ftp://host/x")


def test_what_a_rust_library_was_refused_is_an_os_error() -> None:
    with pytest.raises(OSError, match="No space left") as caught, disk_errors():
        raise Exception("Error while serializing: I/O error: No space left on device (os error 28)")
    assert caught.value.errno == errno.ENOSPC
    with pytest.raises(ValueError, match="something else"), disk_errors():
        raise ValueError("something else")
    with pytest.raises(FileNotFoundError), disk_errors():
        raise FileNotFoundError("as it is")


class TestFaultyStore:
    def test_it_fails_so_often_and_no_more(self, tmp_path: Path) -> None:
        store = FaultyStore(DirectoryStore(tmp_path))
        store.add(Fault("put", "b*", times=2))
        put_bytes(store, "a", b"1")
        for _ in range(2):
            with pytest.raises(OSError, match="No space left") as caught:
                put_bytes(store, "b1", b"2")
            assert caught.value.errno == errno.ENOSPC
        put_bytes(store, "b1", b"2")
        assert store.calls == [("put", "a")] + [("put", "b1")] * 3
        assert store.sizes() == {"a": 1, "b1": 1}

    def test_it_tears(self, tmp_path: Path) -> None:
        store = FaultyStore(DirectoryStore(tmp_path))
        store.add(Fault("put", torn=True))
        with pytest.raises(OSError, match="No space left"):
            put_bytes(store, "a", b"12345678")
        assert store.get("a") == b"1234"

    def test_for_good_is_until_healed(self, tmp_path: Path) -> None:
        store = FaultyStore(DirectoryStore(tmp_path))
        store.add(Fault(times=None, code=errno.EIO))
        calls = (lambda: store.get("a"), store.sizes, lambda: store.delete("a"), lambda: put_bytes(store, "a", b""))
        for call in calls * 2:
            with pytest.raises(OSError, match="Input/output"):
                call()
        with pytest.raises(OSError, match="Input/output"), store.local("a"):
            pass
        store.heal()
        assert store.sizes() == {}

    def test_chance_follows_from_the_seed(self, tmp_path: Path) -> None:
        def failures(seed: int) -> list[int]:
            store = FaultyStore(DirectoryStore(tmp_path), seed=seed)
            store.add(Fault("sizes", times=None, chance=0.5))
            found = []
            for number in range(50):
                try:
                    store.sizes()
                except OSError:
                    found.append(number)
            return found

        assert failures(1) == failures(1) != failures(2)
        assert 10 < len(failures(1)) < 40
