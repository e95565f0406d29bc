"""Logs in an object store, through the S3 protocol.

The server is moto's, on loopback. BCO_TEST_S3_ENDPOINT names another (MinIO, AWS) to run the same tests against.
"""

import gzip
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bco_ray.errors import DataError, StorageError
from bco_ray.feedback.lines import Range, first_rows, ranges, rows_of
from bco_ray.feedback.sources import expand
from bco_ray.storage import locations


def test_bytes_there_and_back(bucket: str) -> None:
    uri = f"{bucket}/there/a b%20+é.bin"
    assert not locations.exists(uri)
    locations.write_bytes(uri, b"0123456789")
    locations.write_bytes(uri, b"abcdefghij")
    with locations.open_input(uri) as file:
        file.seek(4)
        assert file.read(3) == b"efg"
    found = locations.stat(uri)
    assert found is not None
    assert (found.uri, found.bytes, found.is_directory) == (uri, 10, False)
    assert found.modified_ns > 0
    assert locations.stat(f"{bucket}/there").is_directory  # type: ignore[union-attr]


def test_bytes_are_stored_as_they_are_whatever_the_name(bucket: str) -> None:
    for name in ("x.jsonl.gz", "x.jsonl.zst"):
        locations.write_bytes(f"{bucket}/as-is/{name}", b"bytes")
        assert locations.open_input(f"{bucket}/as-is/{name}").read() == b"bytes"


def test_globs(bucket: str) -> None:
    for key in ("g/day=1/a.jsonl", "g/day=1/b.csv", "g/day=2/c.jsonl", "g/top.jsonl", "g/day=2/deep/d.jsonl"):
        locations.write_bytes(f"{bucket}/{key}", b'{"a": 1}\n')

    def names(pattern: str) -> list[str]:
        return [found.uri.removeprefix(f"{bucket}/g/") for found in locations.glob(f"{bucket}/{pattern}")]

    assert names("g/day=*/*.jsonl") == ["day=1/a.jsonl", "day=2/c.jsonl"]
    assert names("g/**/*.jsonl") == ["day=1/a.jsonl", "day=2/c.jsonl", "day=2/deep/d.jsonl", "top.jsonl"]
    assert names("g/day=?") == ["day=1", "day=2"]
    assert names("none/*.jsonl") == []
    assert [file.path.removeprefix(f"{bucket}/g/") for file in expand([f"{bucket}/g", f"{bucket}/g/day=1/"])] == [
        "day=1/a.jsonl", "day=1/b.csv", "top.jsonl"
    ]  # fmt: skip


@pytest.mark.parametrize("range_bytes", [100, 1000, 1 << 20])
def test_lines_by_byte_ranges(bucket: str, range_bytes: int) -> None:
    rows = [b'{"n": %d, "x": "%s"}' % (n, b"x" * (n % 37)) for n in range(200)]
    locations.write_bytes(f"{bucket}/lines/log.jsonl", b"\n".join(rows))
    (file,) = expand([f"{bucket}/lines/*.jsonl"])
    assert [row.raw for part in ranges([file], range_bytes=range_bytes) for row in rows_of(part)] == rows


def test_packed_files_and_columns(bucket: str) -> None:
    rows = [{"n": n, "t": "text"} for n in range(50)]
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(rows), sink, row_group_size=10)
    parquet = sink.getvalue().to_pybytes()
    locations.write_bytes(f"{bucket}/packed/a.parquet", parquet)
    locations.write_bytes(f"{bucket}/packed/b.json.gz", gzip.compress(json.dumps(rows).encode()))
    files = expand([f"{bucket}/packed/"])
    assert [file.kind for file in files] == ["parquet", "json"]
    for file in files:
        got = list(rows_of(Range(file)))
        assert [row.problem for row in got] == [None] * 50
        assert [json.loads(row.raw) for row in got] == rows
        assert first_rows(file) == rows[:20]
    locations.write_bytes(f"{bucket}/torn/a.parquet", parquet[:-100])
    (torn,) = [row for file in expand([f"{bucket}/torn/*"]) for row in rows_of(Range(file))]
    assert (torn.problem or "").startswith("unreadable_rest: ")


def test_what_is_not_there_is_named_with_the_way_out(bucket: str) -> None:
    with pytest.raises(DataError, match=rf"{bucket}/gone.jsonl: no such file"):
        expand([f"{bucket}/gone.jsonl"])
    with pytest.raises(DataError, match=rf"{bucket}/gone.jsonl: cannot be read .* AWS_ACCESS_KEY_ID"):
        locations.open_input(f"{bucket}/gone.jsonl")
    with pytest.raises(DataError, match=r"s3://no-such-bucket/x: cannot be read .*AWS_ENDPOINT_URL"):
        locations.list_directory("s3://no-such-bucket/x")
    with pytest.raises(StorageError, match=r"s3://no-such-bucket/x: cannot be written .*AWS_ENDPOINT_URL"):
        locations.write_bytes("s3://no-such-bucket/x", b"data")


def test_a_file_that_goes_away_while_it_is_read_is_no_content(bucket: str) -> None:
    uri = f"{bucket}/away.jsonl"
    locations.write_bytes(uri, b"[1]\n" * 10)
    (file,) = expand([uri])
    system, path = locations.filesystem_of(uri)
    system.delete_file(path)
    with pytest.raises(DataError, match="away.jsonl: cannot be read"):
        list(rows_of(Range(file)))


def test_a_store_out_of_reach_is_named(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    with pytest.raises(DataError, match=r"x.jsonl: cannot be read .* Could ?n[o']t connect .* AWS_ENDPOINT_URL"):
        expand([f"{bucket}/x.jsonl"])
