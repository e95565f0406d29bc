"""Reading raw rows: every row once, whatever the kind of file, the ranges, the endings and the bytes."""

import csv
import gzip
import io
import json
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from backports import zstd

from bco_ray.errors import DataError
from bco_ray.feedback import raw
from bco_ray.feedback.lines import LineSource, Range, blocks, first_rows, ranges, rows_of
from bco_ray.feedback.raw import RawRow
from bco_ray.feedback.sources import SourceFile, expand
from bco_ray.schema import LINES, RECORDS, Message, Record, record_to_row

TRICKY = [
    b'{"a": "\xe2\x80\xa8 inside"}',
    b"x" * 300,
    b"\xff\xfe",
    b'{"b": "\x0b\x0c\xc2\x85"}',
    b"last without newline",
]
ROWS = [{"prompt": f'q{i}, "quoted"\nsecond line \\', "completion": "r", "label": "up"} for i in range(5)]


def read(path: Path) -> list[RawRow]:
    """All rows of one file."""
    return [row for part in ranges(expand([str(path)])) for row in rows_of(part)]


def objects(rows: list[RawRow]) -> list[Any]:
    assert [row.problem for row in rows] == [None] * len(rows)
    return [json.loads(row.raw) for row in rows]


def as_csv(rows: list[dict[str, Any]]) -> bytes:
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


def as_arrow(rows: list[dict[str, Any]]) -> bytes:
    sink = pa.BufferOutputStream()
    table = pa.Table.from_pylist(rows)
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=2)
    return sink.getvalue().to_pybytes()


def as_parquet(rows: list[dict[str, Any]]) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(rows), sink, row_group_size=2)
    return sink.getvalue().to_pybytes()


TEXTS = {
    "jsonl": b"\n".join(json.dumps(row).encode() for row in ROWS),
    "ndjson": b"".join(json.dumps(row).encode() + b"\r\n" for row in ROWS),
    "json": json.dumps(ROWS, indent=1).encode(),
    "csv": as_csv(ROWS),
}


@pytest.mark.parametrize("ending", [b"\n", b"\r\n"])
@pytest.mark.parametrize("range_bytes", [1, 7, 64, 10_000])
def test_every_line_belongs_to_one_range(tmp_path: Path, ending: bytes, range_bytes: int) -> None:
    path = tmp_path / "log.jsonl"
    path.write_bytes(ending.join([TRICKY[0], b"", b"   ", *TRICKY[1:]]))
    got = [row for part in ranges(expand([str(path)]), range_bytes=range_bytes) for row in rows_of(part)]
    assert [row.raw for row in got] == TRICKY
    data = path.read_bytes()
    assert all(data[row.position :].startswith(row.raw) for row in got)


@pytest.mark.parametrize("kind", TEXTS)
@pytest.mark.parametrize("packing", ["", ".gz", ".zst"])
@pytest.mark.parametrize("members", [1, 3])
def test_every_kind_in_every_packing(tmp_path: Path, kind: str, packing: str, members: int) -> None:
    pack = {"": bytes, ".gz": gzip.compress, ".zst": zstd.compress}[packing]
    data = TEXTS[kind]
    step = -(-len(data) // members)
    path = tmp_path / f"log.{kind}{packing}"
    path.write_bytes(b"".join(pack(data[a : a + step]) for a in range(0, len(data), step)))
    rows = read(path)
    assert objects(rows) == ROWS
    if packing or kind in {"json", "csv"}:
        assert [row.position for row in rows] == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(("name", "write"), [("x.parquet", as_parquet), ("x.arrow", as_arrow)])
def test_columns(tmp_path: Path, name: str, write: Any) -> None:
    (tmp_path / name).write_bytes(write(ROWS))
    rows = read(tmp_path / name)
    assert objects(rows) == ROWS
    assert [row.position for row in rows] == [0, 1, 2, 3, 4]


def test_blocks(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl.gz"
    path.write_bytes(gzip.compress(b"\n".join(TRICKY)))
    (part,) = ranges(expand([str(path)]))
    tables = list(blocks(part, block_bytes=100))
    assert [table.schema for table in tables] == [LINES, LINES]
    assert pa.concat_tables(tables)["raw"].to_pylist() == TRICKY
    assert pa.concat_tables(tables)["problem"].null_count == len(TRICKY)


@pytest.mark.parametrize(
    "text", ['{"a": 1}\n{"a": 2}\n', '{"a": 1}\n\n{"a": 2}', '[{"a": 1}, {"a": 2},]', '{"a":\n1}{"a":\n2}']
)
def test_json_files_of_all_shapes(tmp_path: Path, text: str) -> None:
    path = tmp_path / "log.json"
    path.write_text(text)
    assert objects(read(path)) == [{"a": 1}, {"a": 2}]
    path.write_bytes(b"\xef\xbb\xbf \n" + text.encode())
    assert objects(read(path)) == [{"a": 1}, {"a": 2}]


def test_a_broken_first_line_does_not_cost_the_json_lines_after_it(tmp_path: Path) -> None:
    path = tmp_path / "log.json"
    path.write_text('{"a": "torn\n{"a": 2}\n{"a": 3}\n')
    assert [row.raw for row in read(path)] == [b'{"a": "torn', b'{"a": 2}', b'{"a": 3}']


def test_one_object_over_many_lines(tmp_path: Path) -> None:
    path = tmp_path / "log.json"
    path.write_text(json.dumps({"messages": ROWS}, indent=2))
    assert objects(read(path)) == [{"messages": ROWS}]


@pytest.mark.parametrize("chunk_bytes", [1, 2, 3, 1 << 20])
def test_elements_of_an_array_pass_untouched(tmp_path: Path, chunk_bytes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bco_ray.feedback.json_rows._CHUNK_BYTES", chunk_bytes)
    elements = [
        b'{"a": "\\"]}\\\\"}',
        b'{"b": NaN}',
        b'"\xff"',
        b"1" * 50,
        b'{"s": "\\ud800"}',
        b'{"n": [[{}], "\\\\"]}',
    ]
    path = tmp_path / "log.json"
    path.write_bytes(b" [" + b" ,\n".join(elements) + b"]\n")
    assert read(path) == [RawRow(i, element) for i, element in enumerate(elements)]


@pytest.mark.parametrize(
    ("text", "rows", "why"),
    [
        (b'[{"a": 1}, {"a": 2', 1, "the array breaks off"),
        (b'[{"a": 1}', 0, "the array breaks off"),
        (b'[{"a": 1}, {"a": 2}] [', 2, "more follows"),
        (b'[{"a": 1}, {"a": 2}}, {"a": 3}]', 2, "more follows"),
        (b'{\n"a": 1}\n{"a": ', 1, "the last value breaks off"),
    ],
)
def test_json_that_breaks_off(tmp_path: Path, text: bytes, rows: int, why: str) -> None:
    path = tmp_path / "log.json"
    path.write_bytes(text)
    *good, last = read(path)
    assert objects(good) == [{"a": n + 1} for n in range(rows)]
    assert (last.position, last.raw) == (rows, b"")
    assert (last.problem or "").startswith(f"unreadable_rest: {why}")


@pytest.mark.parametrize("kind", ["jsonl", "csv", "json"])
def test_rows_beyond_the_limit_cost_themselves(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(raw, "MAX_LINE_BYTES", 50)
    texts = {
        "jsonl": b'{"a": "1"}\n' + b"y" * 170 + b'\n{"a": "3"}',
        "csv": b"a\n1\n" + b"y" * 170 + b"\n3\n",
        "json": b'[{"a": "1"}, "' + b"y" * 170 + b'", {"a": "3"}]',
    }
    path = tmp_path / f"log.{kind}"
    path.write_bytes(texts[kind])
    first, long, third = read(path)
    assert objects([first, third]) == [{"a": "1"}, {"a": "3"}]
    assert long.problem == "line_too_long: longer than 50 bytes"
    assert b"yyy" in long.raw
    assert len(long.raw) < 60


def test_a_line_of_just_the_limit_is_a_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(raw, "MAX_LINE_BYTES", 50)
    path = tmp_path / "log.jsonl"
    path.write_bytes(b"y" * 50 + b"\r\n" + b"z" * 51 + b"\n" + b"w" * 50)
    assert [row.problem for row in read(path)] == [None, "line_too_long: longer than 50 bytes", None]


def test_csv_cells(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    path.write_bytes(
        b"\xef\xbb\xbf,id,messages,label\r\n"
        b'0,a,"[{""role"": ""user"", ""content"": ""x""}]",1\r\n\r\n'
        b"1,b,[not json,\r\n"
        b'2,c,"[NaN, ""\\ud800""]",0\r\n'
        b"3,too,few\r\n"
        b"4,d,\xff,1\r\n"
        b'5,"e"f,x,1\r\n'
        b"6,g,x,1\r\n"
    )
    rows = read(path)
    good = [json.loads(row.raw) for row in rows if row.problem is None]
    assert good == [
        {"id": "a", "messages": [{"role": "user", "content": "x"}], "label": "1"},
        {"id": "b", "messages": "[not json"},
        {"id": "c", "messages": [None, "\ud800"], "label": "0"},
        {"id": "g", "messages": "x", "label": "1"},
    ]
    problems = {row.position: row.problem for row in rows if row.problem}
    assert list(problems) == [3, 4, 5]
    assert problems[3] == "bad_csv_row: 3 cells under a header of 4"
    assert "utf-8" in (problems[4] or "")
    assert rows[5].raw == b'5,"e"f,x,1\r\n'


@pytest.mark.parametrize(
    ("text", "why"),
    [(b"a,b,a\n1,2,3\n", "names 'a' twice"), (b'a,b\n"never closed,2\n3,4\n', "unexpected end of data")],
)
def test_csv_that_makes_no_sense(tmp_path: Path, text: bytes, why: str) -> None:
    path = tmp_path / "log.csv"
    path.write_bytes(text)
    (row,) = read(path)
    assert row.position == 0
    assert why in (row.problem or "")


def test_our_segments_and_other_parquet(tmp_path: Path) -> None:
    asked, answered = Message(role="user", content="q"), Message(role="assistant", content="r")
    record = Record(id="a", prompt=[asked], completion=[answered], label=True, metadata={"k": 1})
    pq.write_table(pa.Table.from_pylist([record_to_row(record)], schema=RECORDS), tmp_path / "ours.parquet")
    pq.write_table(pa.table({"prompt": ["q"], "completion": ["r"], "label": [False]}), tmp_path / "theirs.parquet")
    ours, theirs = (json.loads(row.raw) for part in ranges(expand([str(tmp_path)])) for row in rows_of(part))
    assert Record.model_validate(ours) == record
    assert theirs == {"prompt": "q", "completion": "r", "label": False}


def test_values_of_columns_that_json_does_not_know(tmp_path: Path) -> None:
    when = datetime(2026, 5, 4, 3, 2, 1, tzinfo=UTC)
    columns = {
        "nan": [float("nan"), 1.5],
        "nested": [[{"x": float("inf")}], [{"x": 2.0}]],
        "when": [when, None],
        "amount": [Decimal("1.10"), Decimal(2)],
        "data": [b"\xffa", b"b"],
        "map": pa.array([[("k", "v")], []], pa.map_(pa.string(), pa.string())),
    }
    pq.write_table(pa.table(columns), tmp_path / "x.parquet")
    assert objects(read(tmp_path / "x.parquet")) == [
        {"nan": None, "nested": [{"x": None}], "when": when.isoformat(), "amount": "1.10", "data": "�a",
         "map": {"k": "v"}},
        {"nan": 1.5, "nested": [{"x": 2.0}], "when": None, "amount": "2.00", "data": "b", "map": {}},
    ]  # fmt: skip


def test_a_cell_that_cannot_be_decoded_costs_its_row(tmp_path: Path) -> None:
    text = pa.StringArray.from_buffers(3, pa.py_buffer(b"\0\0\0\0\1\0\0\0\2\0\0\0\3\0\0\0"), pa.py_buffer(b"a\xffc"))
    pq.write_table(pa.table({"t": text}), tmp_path / "x.parquet")
    with pa.OSFile(str(tmp_path / "x.arrow"), "wb") as sink, pa.ipc.new_stream(sink, pa.schema({"t": "string"})) as out:
        out.write_table(pa.table({"t": text}))
    for name in ("x.parquet", "x.arrow"):
        first, bad, third = read(tmp_path / name)
        assert objects([first, third]) == [{"t": "a"}, {"t": "c"}]
        assert (bad.problem or "").startswith("unreadable_row: ")
        assert (bad.position, third.position) == (1, 2)


def test_huge_row_groups_are_read_in_small_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pq.write_table(pa.table({"t": ["x" * 100_000] * 300}), tmp_path / "x.parquet", use_dictionary=False)
    seen: list[int] = []
    iterate = pq.ParquetFile.iter_batches
    monkeypatch.setattr(
        pq.ParquetFile, "iter_batches", lambda self, batch_size: seen.append(batch_size) or iterate(self, batch_size)
    )
    assert len(read(tmp_path / "x.parquet")) == 300
    assert seen[0] * 100_000 < 5 << 20


def test_a_file_that_is_not_there_is_no_content(tmp_path: Path) -> None:
    for name in ("gone.jsonl", "gone.parquet"):
        with pytest.raises(DataError, match=f"{name}: no such file"):
            list(rows_of(Range(SourceFile(str(tmp_path / name), 1, 1))))


def test_first_rows_pass_over_broken_ones(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    path.write_bytes(b"\n".join([*TRICKY, b"[1]", b'{"c": 1}', b'{"d": 2}', b'{"e": 3}']))
    (file,) = expand([str(path)])
    assert first_rows(file, 3) == [{"a": "\u2028 inside"}, {"c": 1}, {"d": 2}]
    torn = tmp_path / "torn.json"
    torn.write_bytes(b'[{"a": 1}, {')
    assert first_rows(expand([str(torn)])[0]) == [{"a": 1}]


def test_the_source_has_one_task_per_range(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b"[1]\n[2]\n[3]\n")
    (tmp_path / "b.json").write_bytes(b"[4, 5]")
    source = LineSource(expand([str(tmp_path)]), range_bytes=4)
    tables = [table for task in source.get_read_tasks(1) for table in task()]
    assert len(source.get_read_tasks(1)) == 4
    assert pa.concat_tables(tables)["raw"].to_pylist() == [b"[1]", b"[2]", b"[3]", b"4", b"5"]
    assert source.estimate_inmemory_data_size() == 18
