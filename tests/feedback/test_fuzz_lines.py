"""Whatever bytes a file holds, reading it raises nothing and yields what a plain reference implementation says."""

import gzip
import json
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from backports import zstd
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bco_ray.feedback import raw
from bco_ray.feedback.lines import Range, first_rows, ranges, rows_of
from bco_ray.feedback.raw import RawRow
from bco_ray.feedback.sources import expand

FUZZ = settings(
    max_examples=60, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
NASTY = st.sampled_from(
    [b"", b"   ", b"\r", b"\xff\xfe", b'{"a": NaN}', b'{"a": "\\ud800"}', b'{"a": "\xed\xa0\x80"}', b"\xe2\x80\xa8",
     b'{"unclosed": "', b"[" * 300, b'{"a": 1}', b"\x00", b"1e999", b"9" * 400, b"\x0b\x0c\x1c\xc2\x85"]
)  # fmt: skip
LINE = NASTY | st.binary(max_size=40).map(lambda line: line.replace(b"\n", b""))
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)


def read(path: Path, range_bytes: int = 1 << 20) -> list[RawRow]:
    """All rows of one file."""
    return [row for part in ranges(expand([str(path)]), range_bytes=range_bytes) for row in rows_of(part)]


def lines_in(data: bytes) -> list[bytes]:
    """The reference: non-blank lines, endings off."""
    return [line.rstrip(b"\r\n") for line in data.removeprefix(b"\xef\xbb\xbf").split(b"\n") if line.strip()]


@FUZZ
@given(lines=st.lists(LINE, max_size=12), ending=st.sampled_from([b"\n", b"\r\n"]), range_bytes=st.integers(1, 90))
def test_lines_of_any_bytes_in_ranges_of_any_size(
    tmp_path: Path, lines: list[bytes], ending: bytes, range_bytes: int
) -> None:
    path = tmp_path / "log.jsonl"
    path.write_bytes(ending.join(lines))
    whole = list(rows_of(Range(expand([str(path)])[0])))
    assert [row.raw for row in whole] == lines_in(path.read_bytes())
    assert read(path, range_bytes) == whole
    first_rows(expand([str(path)])[0])


@FUZZ
@given(values=st.lists(JSON, max_size=6), indent=st.sampled_from([None, 1]), ascii_only=st.booleans())
def test_arrays_of_any_json(tmp_path: Path, values: list[Any], indent: int | None, ascii_only: bool) -> None:
    path = tmp_path / "log.json"
    text = json.dumps(values, indent=indent, ensure_ascii=ascii_only)
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    got = [json.loads(row.raw.decode("utf-8", "surrogatepass")) for row in read(path)]
    assert json.dumps(got) == json.dumps(values)


@FUZZ
@given(data=st.binary(max_size=120) | st.lists(NASTY, max_size=6).map(b",".join), array=st.booleans())
def test_json_of_any_bytes_never_raises(tmp_path: Path, data: bytes, array: bool) -> None:
    path = tmp_path / "log.json"
    path.write_bytes(b"[" + data if array else data)
    rows = read(path)
    assert [row.position for row in rows] == list(range(len(rows)))
    assert all(row.problem is None for row in rows[:-1])


@FUZZ
@given(data=st.binary(max_size=120) | st.text(alphabet='a,"\n\r\x00é', max_size=60).map(str.encode))
def test_csv_of_any_bytes_never_raises(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "log.csv"
    path.write_bytes(b"a,b\n" + data)
    rows = read(path)
    assert [row.position for row in rows] == list(range(len(rows)))
    assert all(row.problem or isinstance(json.loads(row.raw), dict) for row in rows)


@FUZZ
@given(data=st.binary(max_size=200))
@pytest.mark.parametrize("name", ["x.jsonl.gz", "x.json.zst", "x.csv.gz", "x.parquet", "x.arrow"])
def test_what_only_claims_to_be_such_a_file_is_one_row(tmp_path: Path, name: str, data: bytes) -> None:
    path = tmp_path / name
    path.write_bytes(b"\x01" + data)
    (row,) = read(path) or [RawRow(0, b"", "unreadable_rest: ")]
    assert (row.position, row.raw) == (0, b"")
    assert (row.problem or "").startswith("unreadable_rest: ")


TEXT = b"".join(b'{"n": %d, "x": "%s"}\n' % (n, bytes([97 + n % 26]) * (n * 7 % 50)) for n in range(40))


def gzip_head(data: bytes) -> bytes:
    """What a torn gzip file still says."""
    return zlib.decompressobj(31).decompress(data)


def zstd_head(data: bytes) -> bytes:
    return zstd.ZstdDecompressor().decompress(data)


@pytest.mark.parametrize(
    ("name", "pack", "unpack"), [("x.jsonl.gz", gzip.compress, gzip_head), ("x.jsonl.zst", zstd.compress, zstd_head)]
)
def test_a_file_torn_at_every_byte(
    tmp_path: Path, name: str, pack: Callable[[bytes], bytes], unpack: Callable[[bytes], bytes]
) -> None:
    path, packed = tmp_path / name, pack(TEXT)
    for cut in range(1, len(packed)):
        path.write_bytes(packed[:cut])
        *good, last = read(path)
        complete = unpack(packed[:cut]).split(b"\n")[:-1]
        assert [row.raw for row in good] == complete
        assert (last.position, last.raw) == (len(complete), b"")
        assert (last.problem or "").startswith("unreadable_rest: ")


def test_garbage_after_a_gzip_member_costs_what_follows(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl.gz"
    path.write_bytes(gzip.compress(TEXT) + b"garbage")
    *good, last = read(path)
    assert [row.raw for row in good] == TEXT.splitlines()
    assert last.position == 40
    assert "unreadable_rest" in (last.problem or "")


def test_columns_torn_at_many_bytes(tmp_path: Path) -> None:
    table = pa.table({"n": list(range(50)), "t": ["text"] * 50})
    whole = [{"n": n, "t": "text"} for n in range(50)]
    pq.write_table(table, tmp_path / "whole.parquet", row_group_size=10)
    with pa.OSFile(str(tmp_path / "whole.arrow"), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=10)
    with pa.OSFile(str(tmp_path / "file.arrow"), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=10)
    for name in ("whole.parquet", "whole.arrow", "file.arrow"):
        data = (tmp_path / name).read_bytes()
        (tmp_path / f"torn-{name}").write_bytes(data)
        assert [json.loads(row.raw) for row in read(tmp_path / f"torn-{name}")] == whole
        for cut in range(0, len(data) - 12, 97):
            (tmp_path / f"torn-{name}").write_bytes(data[:cut])
            rows = read(tmp_path / f"torn-{name}")
            good = [json.loads(row.raw) for row in rows if row.problem is None]
            assert good == whole[: len(good)]
            assert len(good) % 10 == 0
            assert len(rows) <= len(good) + 1


def test_damaged_parquet_never_raises(tmp_path: Path) -> None:
    pq.write_table(pa.table({"n": list(range(50)), "t": ["text"] * 50}), tmp_path / "x.parquet", row_group_size=10)
    data = (tmp_path / "x.parquet").read_bytes()
    for at in range(4, len(data), 53):
        (tmp_path / "x.parquet").write_bytes(data[:at] + b"\xff\x00\x7f" + data[at + 3 :])
        read(tmp_path / "x.parquet")


def test_rows_nested_beyond_all_recursion(tmp_path: Path) -> None:
    deep = b'{"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"
    (tmp_path / "a.jsonl").write_bytes(deep + b'\n{"b": 1}\n')
    (tmp_path / "b.json").write_bytes(b"[" + deep + b', {"b": 1}]')
    (tmp_path / "c.json").write_bytes(deep + b'\n{"b": 1}\n')
    for file in expand([str(tmp_path)]):
        assert [row.raw for row in rows_of(Range(file))] == [deep, b'{"b": 1}']
        assert first_rows(file) == [{"b": 1}]
    (tmp_path / "d.csv").write_bytes(b'a,b\n"' + deep.replace(b'"', b'""') + b'",1\n2,3\n')
    first, second = read(tmp_path / "d.csv")
    assert json.loads(first.raw)["a"] == deep.decode()
    assert json.loads(second.raw) == {"a": "2", "b": "3"}


def test_a_line_of_ten_megabytes_is_a_row(tmp_path: Path) -> None:
    long = b'{"a": "' + b"x" * (10 << 20) + b'"}'
    (tmp_path / "a.jsonl").write_bytes(long + b"\n[1]\n")
    (tmp_path / "b.json").write_bytes(b"[" + long + b", [1]]")
    for name in ("a.jsonl", "b.json"):
        assert [row.raw for row in read(tmp_path / name, 1 << 20)] == [long, b"[1]"]
    assert len(long) < raw.MAX_LINE_BYTES
