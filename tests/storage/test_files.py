"""Whole or absent; committed or invisible; damaged is noticed."""

import os
from pathlib import Path

import pytest

from bco_ray.errors import SpecError, StorageError
from bco_ray.storage import files


def test_a_failed_directory_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), files.new_directory(tmp_path / "d") as scratch:  # noqa: PT012
        (scratch / "x").write_text("half")
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []
    with files.new_directory(tmp_path / "d") as scratch:
        (scratch / "x").write_text("whole")
    assert (tmp_path / "d" / "x").read_text() == "whole"


def test_every_damaged_file_is_noticed(tmp_path: Path) -> None:
    for name in ("a.bin", "sub/b.bin"):
        files.write_bytes(tmp_path / name, b"content of " + name.encode())
    assert not files.is_committed(tmp_path)
    files.commit_directory(tmp_path, {"step": 3})
    assert files.verify_directory(tmp_path)["step"] == 3
    for name in ("a.bin", "sub/b.bin"):
        good = (tmp_path / name).read_bytes()
        for bad in (good[:-1], good + b"x", good.replace(b"c", b"k")):
            (tmp_path / name).write_bytes(bad)
            with pytest.raises(StorageError, match=name):
                files.verify_directory(tmp_path)
        (tmp_path / name).write_bytes(good)
    (tmp_path / "a.bin").unlink()
    with pytest.raises(StorageError, match="a.bin"):
        files.verify_directory(tmp_path)


@pytest.fixture
def synced(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """Path and size of everything that is made durable, in order."""
    seen: list[tuple[str, int]] = []

    def fsync(descriptor: int) -> None:
        path = Path(f"/proc/self/fd/{descriptor}").readlink()
        seen.append((path.name, path.stat().st_size if path.is_file() else 0))

    monkeypatch.setattr(os, "fsync", fsync)
    return seen


def test_a_directory_is_on_disk_before_it_gets_its_name(tmp_path: Path, synced: list[tuple[str, int]]) -> None:
    with files.new_directory(tmp_path / "new" / "d") as scratch:
        (scratch / "sub").mkdir()
        (scratch / "sub" / "x").write_text("whole")
    assert synced[0] == (tmp_path.name, 0), "else `new` could be gone"
    assert {scratch.name, "sub"} <= {name for name, _ in synced}
    assert ("x", 5) in synced
    assert synced[-1] == ("new", 0), "the rename"


def test_files_are_on_disk_before_a_manifest_names_them(tmp_path: Path, synced: list[tuple[str, int]]) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "x").write_text("whole")
    files.commit_directory(tmp_path, {})
    assert ("x", 5) in synced[:-2]
    assert synced[-2][0].startswith(f".{files.MANIFEST}")


def test_leftovers_of_killed_writers_are_removed(tmp_path: Path) -> None:
    for name in (".a.json.123.tmp", ".1.123.tmp/sub/x", "kept.tmp", ".kept/x.tmp", "1/.x.tmp"):
        files.write_bytes(tmp_path / name, b"")
    files.remove_leftovers(tmp_path)
    assert sorted(p.name for p in tmp_path.rglob("*") if p.is_file()) == [".x.tmp", "kept.tmp", "x.tmp"]


def test_missing_and_torn_json_are_named(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="m.json: missing"):
        files.read_json(tmp_path / "m.json")
    (tmp_path / "m.json").write_text('{"a": ')
    with pytest.raises(StorageError, match="m.json: not valid JSON"):
        files.read_json(tmp_path / "m.json")
    with pytest.raises(ValueError, match="not JSON compliant"):
        files.write_json(tmp_path / "n.json", float("nan"))


def test_digest_ignores_key_order() -> None:
    assert files.digest({"a": 1, "b": [2]}) == files.digest({"b": [2], "a": 1}) != files.digest({"a": 1, "b": [3]})


def test_object_stores_are_refused_clearly(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="s3://bucket/x: not a local directory"):
        files.local_directory("s3://bucket/x")
    assert files.local_directory(f"file://{tmp_path}/new").is_dir()
