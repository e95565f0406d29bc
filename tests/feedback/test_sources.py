"""Which files an entry means: paths, directories, globs, data sets that `datasets` saved, and data sets on the Hub."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import fsspec
import huggingface_hub
import pytest
from datasets import Dataset, DatasetDict

from bco_ray.errors import DataError, SpecError
from bco_ray.feedback.lines import Range, first_rows, rows_of
from bco_ray.feedback.sources import SourceFile, expand
from bco_ray.storage import locations
from bco_ray.storage.log_names import READABLE


def names(entries: list[str]) -> list[str]:
    return [Path(file.path).name for file in expand(entries)]


def test_sources_are_globbed_sorted_and_refused_by_name(tmp_path: Path) -> None:
    for name in ("b.jsonl", "a.jsonl.gz", "c.parquet", "notes.txt"):
        (tmp_path / name).write_bytes(b"")
    assert names([str(tmp_path / "*.jsonl*"), str(tmp_path), str(tmp_path / "b.jsonl")]) == [
        "a.jsonl.gz",
        "b.jsonl",
        "c.parquet",
    ]
    with pytest.raises(DataError, match=r"nothing\*: no such file"):
        expand([str(tmp_path / "nothing*")])
    with pytest.raises(SpecError, match=r"notes.txt: unknown file type; readable are .jsonl"):
        expand([str(tmp_path / "notes.txt")])
    with pytest.raises(SpecError, match=r"ftp://host/x.jsonl: unknown kind of storage"):
        expand(["ftp://host/x.jsonl"])


def test_a_directory_without_logs_is_named(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_bytes(b"")
    with pytest.raises(DataError, match=r"nothing readable in it; readable are .jsonl"):
        expand([str(tmp_path)])


def test_facts_are_those_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"12345")
    (file,) = expand([f"file://{path}"])
    assert file == SourceFile(str(path), 5, path.stat().st_mtime_ns)
    assert file.identity() == {"path": str(path), "bytes": 5, "modified_ns": path.stat().st_mtime_ns, "format": ""}


def test_every_readable_suffix_has_a_kind() -> None:
    kinds = {suffix: (file.kind, file.compression) for suffix in READABLE if (file := SourceFile(f"/x{suffix}", 0, 0))}
    assert kinds[".ndjson.gz"] == ("jsonl", "gz")
    assert kinds[".json.zst"] == ("json", "zst")
    assert kinds[".csv"] == ("csv", "")
    assert kinds[".arrow"] == ("arrow", "")
    assert SourceFile("/X.JSONL.GZ", 0, 0).compression == "gz"


def test_what_lies_beside_the_data_is_passed_over(tmp_path: Path) -> None:
    beside = ["manifest.json", "manifest-000001.json", "import-0123456789abcdef.json", "state.json",
              "dataset_info.json", ".hidden.jsonl", "_old.jsonl", "cache-1.arrow"]  # fmt: skip
    for name in [*beside, "export.json"]:
        (tmp_path / name).write_bytes(b"")
    assert names([str(tmp_path)]) == ["export.json"]


def test_deep_globs(tmp_path: Path) -> None:
    for name in ("2026/01/a.jsonl", "2026/02/b.jsonl", "c.jsonl"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    assert names([f"{tmp_path}/**/*.jsonl"]) == ["a.jsonl", "b.jsonl", "c.jsonl"]
    assert names([f"{tmp_path}/*/0?"]) == ["a.jsonl", "b.jsonl"]


def test_a_bracket_in_a_name_is_a_bracket(tmp_path: Path) -> None:
    (tmp_path / "a[1].jsonl").write_bytes(b"")
    assert names([str(tmp_path / "a[1].jsonl")]) == ["a[1].jsonl"]


def test_data_sets_saved_to_disk(tmp_path: Path) -> None:
    rows = [{"prompt": [{"role": "user", "content": f"q{i}"}], "completion": "r", "label": True} for i in range(7)]
    data = Dataset.from_list(rows)
    data.save_to_disk(tmp_path / "one", num_shards=2)
    DatasetDict({"train": data, "test": data.select(range(2))}).save_to_disk(tmp_path / "both")
    one = expand([str(tmp_path / "one")])
    assert [file.kind for file in one] == ["arrow", "arrow"]
    assert [row for file in one for row in first_rows(file)] == rows
    assert [row.position for row in rows_of(Range(one[0]))] == [0, 1, 2, 3]
    assert [len(first_rows(file)) for file in expand([str(tmp_path / "both")])] == [2, 7]


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A Hub in memory: files by path, and one commit."""
    memory = fsspec.filesystem("memory", skip_instance_cache=True)
    memory.store.clear()
    monkeypatch.setattr(huggingface_hub, "HfFileSystem", lambda: memory)

    def dataset_info(self: Any, name: str, revision: str | None) -> Any:
        return SimpleNamespace(sha=f"sha-of-{revision or 'main'}")

    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", dataset_info)
    locations._hub.cache_clear()
    yield memory
    locations._hub.cache_clear()
    memory.store.clear()


def test_a_data_set_on_the_hub_is_its_readable_files_at_a_commit(hub: Any) -> None:
    root = "/datasets/org/name@sha-of-main"
    for name in ("README.md", "dataset_infos.json", "data/train.jsonl", "data/more/x.parquet"):
        hub.pipe(f"{root}/{name}", b'{"a": 1}\n')
    pinned = "hf://datasets/org/name@sha-of-main/data"
    assert [f.path for f in expand(["hf://datasets/org/name"])] == [f"{pinned}/more/x.parquet", f"{pinned}/train.jsonl"]
    (file,) = expand(["hf://datasets/org/name/data/*.jsonl"])
    assert (file.path, file.bytes) == (f"{pinned}/train.jsonl", 9)
    assert first_rows(file) == [{"a": 1}]
    with pytest.raises(DataError, match="no such file"):
        expand(["hf://datasets/org/name@v2/data/*.jsonl"])


@pytest.mark.parametrize("entry", ["hf://org/name", "hf://datasets/name", "hf://datasets/*/name"])
def test_the_hub_has_data_sets_only(entry: str) -> None:
    with pytest.raises(SpecError, match="hf://datasets/<organisation>/<name>"):
        expand([entry])


def test_a_hub_out_of_reach_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.HfApi, "__init__", _nowhere(huggingface_hub.HfApi.__init__))
    with pytest.raises(DataError, match=r"hf://datasets/org/name: cannot be read .* HF_TOKEN .* HF_ENDPOINT"):
        expand(["hf://datasets/org/name"])


def _nowhere(init: Any) -> Any:
    return lambda self: init(self, endpoint="http://127.0.0.1:1")
