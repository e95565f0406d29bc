"""Places as strings: local files here, object stores in tests/feedback/test_object_store.py."""

import pickle
import subprocess
import sys
from pathlib import Path

import pytest

from bco_ray.errors import DataError, SpecError, StorageError
from bco_ray.storage import locations


def test_local_bytes_there_and_back(tmp_path: Path) -> None:
    uri = f"file://{tmp_path}/new/x.bin"
    assert not locations.exists(uri)
    locations.write_bytes(uri, b"0123456789")
    with locations.open_input(uri) as file:
        file.seek(4)
        assert file.read(3) == b"456"
        file.seek(-2, 2)
        assert (file.read(), file.tell()) == (b"89", 10)
    found = locations.stat(uri)
    assert found is not None
    assert (found.uri, found.name, found.bytes, found.is_directory) == (f"{tmp_path}/new/x.bin", "x.bin", 10, False)
    assert found.modified_ns == (tmp_path / "new/x.bin").stat().st_mtime_ns
    assert pickle.loads(pickle.dumps(found)) == found


def test_listing_and_globs_are_sorted(tmp_path: Path) -> None:
    for name in ("b", "a/y", "a/x", ".hidden"):
        locations.write_bytes(f"{tmp_path}/{name}", b"")
    assert [f.name for f in locations.list_directory(str(tmp_path))] == [".hidden", "a", "b"]
    assert [f.uri for f in locations.list_directory(str(tmp_path), recursive=True) if not f.is_directory] == [
        f"{tmp_path}/.hidden", f"{tmp_path}/a/x", f"{tmp_path}/a/y", f"{tmp_path}/b"
    ]  # fmt: skip
    assert [f.name for f in locations.glob(f"{tmp_path}/*")] == ["a", "b"]
    assert [f.name for f in locations.glob(f"{tmp_path}/a/?")] == ["x", "y"]
    assert locations.glob(f"{tmp_path}/none*") == []


def test_failures_name_the_place(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"gone: no such file or directory"):
        locations.open_input(f"{tmp_path}/gone")
    with pytest.raises(DataError, match=r"gone: no such file or directory"):
        locations.list_directory(f"{tmp_path}/gone")
    with pytest.raises(DataError, match=r"cannot be read .* Check the path and its permissions"):
        locations.open_input(str(tmp_path))
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StorageError, match=r"file/x: cannot be written"):
        locations.write_bytes(f"{tmp_path}/file/x", b"")


@pytest.mark.parametrize(
    ("uri", "why"),
    [("ftp://x/y", "unknown kind of storage"), ("s3://", "names no bucket"), ("s3://*/x", "after the bucket"),
     ("hf://org/name", "hf://datasets/")],
)  # fmt: skip
def test_uris_that_mean_nothing(uri: str, why: str) -> None:
    with pytest.raises(SpecError, match=why):
        locations.glob(uri)


def test_the_hub_cannot_be_written_to() -> None:
    with pytest.raises(StorageError, match="can only be read from"):
        locations.write_bytes("hf://datasets/org/name/x.jsonl", b"")


@pytest.mark.parametrize(
    ("pattern", "yes", "no"),
    [
        ("s3://b/*.jsonl", ["s3://b/x.jsonl"], ["s3://b/a/x.jsonl", "s3://b/.x.jsonl", "s3://b/x_jsonl"]),
        ("s3://b/**/x?", ["s3://b/x1", "s3://b/a/x1", "s3://b/a/c/x1"], ["s3://b/a/x", "s3://b/.a/x1"]),
        ("s3://b/a/**", ["s3://b/a/x", "s3://b/a/c/x"], ["s3://b/x", "s3://b/a/.x"]),
        ("s3://b/day=*/p[1].csv", ["s3://b/day=3/p[1].csv"], ["s3://b/day=3/p1.csv"]),
    ],
)
def test_what_patterns_match(pattern: str, yes: list[str], no: list[str]) -> None:
    import re

    regex = re.compile(locations._translated(pattern))
    assert [uri for uri in yes + no if regex.fullmatch(uri)] == yes


def test_importing_it_imports_no_cloud() -> None:
    code = "import bco_ray.storage.locations, sys; print([m for m in sys.modules if m.split('.')[0] in M])"
    code = f"M = ('pyarrow', 'huggingface_hub', 'fsspec'); {code}"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert out.stdout.strip() == "[]"
