"""Reading raw rows: every line once, whatever the ranges, the endings and the bytes."""

import gzip
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bco_ray.errors import DataError, SpecError
from bco_ray.feedback import lines
from bco_ray.feedback.lines import Range, blocks, ranges, rows_of
from bco_ray.feedback.sources import expand
from bco_ray.schema import RECORDS, Message, Record, record_to_row

TRICKY = [
    b'{"a": "\xe2\x80\xa8 inside"}',
    b"x" * 300,
    b"\xff\xfe",
    b'{"b": "\x0b\x0c\xc2\x85"}',
    b"last without newline",
]


@pytest.mark.parametrize("ending", [b"\n", b"\r\n"])
@pytest.mark.parametrize("range_bytes", [1, 7, 64, 10_000])
def test_every_line_belongs_to_one_range(tmp_path: Path, ending: bytes, range_bytes: int) -> None:
    path = tmp_path / "log.jsonl"
    path.write_bytes(ending.join([TRICKY[0], b"", b"   ", *TRICKY[1:]]))
    got = [row for part in ranges(expand([str(path)]), range_bytes=range_bytes) for row in rows_of(part)]
    assert [raw for _, raw in got] == TRICKY
    data = path.read_bytes()
    assert all(data[position:].startswith(raw) for position, raw in got)


def test_gzip_and_blocks(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl.gz"
    path.write_bytes(gzip.compress(b"\n".join(TRICKY)))
    (part,) = ranges(expand([str(path)]))
    assert [raw for _, raw in rows_of(part)] == TRICKY
    tables = list(blocks(part, block_bytes=100))
    assert len(tables) == 2
    assert pa.concat_tables(tables)["raw"].to_pylist() == TRICKY


def test_a_torn_gzip_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "torn.jsonl.gz"
    path.write_bytes(gzip.compress(b"line\n" * 10_000)[:-30])
    with pytest.raises(DataError, match=r"torn.jsonl.gz: cannot be read to its end"):
        list(rows_of(Range(expand([str(path)])[0])))


def test_a_line_beyond_the_limit_costs_one_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lines, "MAX_LINE_BYTES", 50)
    path = tmp_path / "log.jsonl"
    path.write_bytes(b"first\n" + b"y" * 170 + b"\nthird\n")
    assert [raw for _, raw in rows_of(Range(expand([str(path)])[0]))] == [b"first", b"y" * 50, b"third"]


def test_our_segments_and_other_parquet(tmp_path: Path) -> None:
    asked, answered = Message(role="user", content="q"), Message(role="assistant", content="r")
    record = Record(id="a", prompt=[asked], completion=[answered], label=True, metadata={"k": 1})
    pq.write_table(pa.Table.from_pylist([record_to_row(record)], schema=RECORDS), tmp_path / "ours.parquet")
    pq.write_table(pa.table({"prompt": ["q"], "completion": ["r"], "label": [False]}), tmp_path / "theirs.parquet")
    ours, theirs = (json.loads(raw) for part in ranges(expand([str(tmp_path)])) for _, raw in rows_of(part))
    assert Record.model_validate(ours) == record
    assert theirs == {"prompt": "q", "completion": "r", "label": False}


def test_sources_are_globbed_sorted_and_refused_by_name(tmp_path: Path) -> None:
    for name in ("b.jsonl", "a.jsonl.gz", "c.parquet", "notes.txt"):
        (tmp_path / name).write_bytes(b"")
    names = [Path(f.path).name for f in expand([str(tmp_path / "*.jsonl*"), str(tmp_path), str(tmp_path / "b.jsonl")])]
    assert names == ["a.jsonl.gz", "b.jsonl", "c.parquet"]
    with pytest.raises(DataError, match=r"nothing\*: no such file"):
        expand([str(tmp_path / "nothing*")])
    with pytest.raises(SpecError, match=r"notes.txt: unknown file type; readable are .jsonl"):
        expand([str(tmp_path / "notes.txt")])
    with pytest.raises(SpecError, match="only local paths"):
        expand(["s3://bucket/x.jsonl"])
