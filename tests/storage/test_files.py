"""Whole or absent; committed or invisible; damaged is noticed."""

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
    with pytest.raises(SpecError, match="s3://bucket/x: only local"):
        files.local_directory("s3://bucket/x")
    assert files.local_directory(f"file://{tmp_path}/new").is_dir()
