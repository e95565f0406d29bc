"""Logs in an object store, through the S3 protocol.

The server is a small one in this file, because the usual fake (moto) cannot be installed beside our pins: botocore
wants python-dateutil < 3. BCO_TEST_S3_ENDPOINT names a real one (MinIO, moto) to run the same tests against.
"""

import gzip
import json
import os
import re
import threading
import uuid
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape

import pyarrow as pa
import pyarrow.fs
import pyarrow.parquet as pq
import pytest

from bco_ray.errors import DataError, StorageError
from bco_ray.feedback.lines import Range, first_rows, ranges, rows_of
from bco_ray.feedback.sources import expand
from bco_ray.storage import locations

BUCKET = f"bco-test-{uuid.uuid4().hex}"  # a real server remembers earlier runs


class S3Handler(BaseHTTPRequestHandler):
    """HEAD, GET with ranges, PUT, and listing with a delimiter, path style; `server.objects` by bucket, then key."""

    protocol_version = "HTTP/1.1"
    server: "S3Server"

    def log_message(self, format: str, *args: object) -> None:
        """Silence."""

    def _place(self) -> tuple[str, str, dict[str, list[str]]]:
        url = urlsplit(self.path)
        bucket, _, key = unquote(url.path).lstrip("/").partition("/")
        return bucket, key, parse_qs(url.query, keep_blank_values=True)

    def _answer(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in ({"Content_Length": str(len(body))} | headers).items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _error(self, status: int, code: str) -> None:
        self._answer(status, f"<Error><Code>{code}</Code><Message>{code}</Message></Error>".encode())

    def do_GET(self) -> None:
        bucket, key, query = self._place()
        objects = self.server.objects.get(bucket)
        if objects is None:
            return self._error(404, "NoSuchBucket")
        if not key:
            return self._list(objects, query)
        if key not in objects:
            return self._error(404, "NoSuchKey")
        facts = {"ETag": '"1"', "Last_Modified": "Mon, 04 May 2026 03:02:01 GMT", "Accept_Ranges": "bytes"}
        data = objects[key]
        wanted = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        if not wanted:
            return self._answer(200, data, **facts)
        start, end = int(wanted[1]), min(int(wanted[2]) + 1, len(data))
        return self._answer(206, data[start:end], Content_Range=f"bytes {start}-{end - 1}/{len(data)}", **facts)

    do_HEAD = do_GET

    def do_PUT(self) -> None:
        bucket, key, _ = self._place()
        data = self._body()
        if "aws-chunked" in self.headers.get("Content-Encoding", ""):
            data = _unchunked(data)
        if key and bucket not in self.server.objects:
            return self._error(404, "NoSuchBucket")
        objects = self.server.objects.setdefault(bucket, {})
        if key:
            objects[key] = data
        return self._answer(200, ETag='"1"')

    def do_DELETE(self) -> None:
        bucket, key, _ = self._place()
        self.server.objects[bucket].pop(key, None)
        self._answer(204)

    def _body(self) -> bytes:
        if "chunked" not in self.headers.get("Transfer-Encoding", ""):
            return self.rfile.read(int(self.headers["Content-Length"]))
        whole = b""
        while size := int(self.rfile.readline(), 16):
            whole += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return whole

    def _list(self, objects: dict[str, bytes], query: dict[str, list[str]]) -> None:
        prefix, delimiter = query.get("prefix", [""])[0], query.get("delimiter", [""])[0]
        keys = sorted(key for key in objects if key.startswith(prefix))
        below = {}
        for key in keys if delimiter else []:
            name, mark, _ = key[len(prefix) :].partition(delimiter)
            below |= {key: prefix + name + delimiter} if mark else {}
        contents = "".join(
            f"<Contents><Key>{escape(key)}</Key><Size>{len(objects[key])}</Size>"
            "<LastModified>2026-05-04T03:02:01.000Z</LastModified></Contents>"
            for key in keys
            if key not in below
        )
        prefixes = "".join(
            f"<CommonPrefixes><Prefix>{escape(p)}</Prefix></CommonPrefixes>" for p in sorted(set(below.values()))
        )
        head = f"<IsTruncated>false</IsTruncated><KeyCount>{len(keys)}</KeyCount><Prefix>{escape(prefix)}</Prefix>"
        self._answer(200, f"<ListBucketResult>{head}{contents}{prefixes}</ListBucketResult>".encode())


class S3Server(ThreadingHTTPServer):
    """Keeps objects in memory."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), S3Handler)
        self.objects: dict[str, dict[str, bytes]] = {}


def _unchunked(data: bytes) -> bytes:
    """The payload of the SDK's chunked uploads: size line, bytes, ..., a chunk of size 0, checksums."""
    whole = b""
    while data:
        size_line, _, data = data.partition(b"\r\n")
        size = int(size_line.partition(b";")[0], 16)
        if not size:
            break
        whole, data = whole + data[:size], data[size + 2 :]
    return whole


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    """The S3 server's URL."""
    if given := os.environ.get("BCO_TEST_S3_ENDPOINT"):
        yield given
        return
    server = S3Server()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def store(endpoint: str) -> Iterator[str]:
    """A bucket's URI, the environment pointing at its server."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("AWS_ENDPOINT_URL_S3", "AWS_DEFAULT_REGION", "AWS_SESSION_TOKEN", "AWS_PROFILE"):
            patch.delenv(name, raising=False)
        patch.setenv("AWS_ACCESS_KEY_ID", os.environ.get("BCO_TEST_S3_KEY", "key"))
        patch.setenv("AWS_SECRET_ACCESS_KEY", os.environ.get("BCO_TEST_S3_SECRET", "secret"))
        patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        patch.setenv("AWS_REGION", "us-east-1")
        patch.setenv("AWS_ENDPOINT_URL", endpoint)
        scheme, _, host = endpoint.partition("://")
        pa.fs.S3FileSystem(scheme=scheme, endpoint_override=host, allow_bucket_creation=True).create_dir(BUCKET)
        yield f"s3://{BUCKET}"


def test_bytes_there_and_back(store: str) -> None:
    uri = f"{store}/there/a b%20+é.bin"
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
    assert locations.stat(f"{store}/there").is_directory  # type: ignore[union-attr]


def test_bytes_are_stored_as_they_are_whatever_the_name(store: str) -> None:
    for name in ("x.jsonl.gz", "x.jsonl.zst"):
        locations.write_bytes(f"{store}/as-is/{name}", b"bytes")
        assert locations.open_input(f"{store}/as-is/{name}").read() == b"bytes"


def test_globs(store: str) -> None:
    for key in ("g/day=1/a.jsonl", "g/day=1/b.csv", "g/day=2/c.jsonl", "g/top.jsonl", "g/day=2/deep/d.jsonl"):
        locations.write_bytes(f"{store}/{key}", b'{"a": 1}\n')

    def names(pattern: str) -> list[str]:
        return [found.uri.removeprefix(f"{store}/g/") for found in locations.glob(f"{store}/{pattern}")]

    assert names("g/day=*/*.jsonl") == ["day=1/a.jsonl", "day=2/c.jsonl"]
    assert names("g/**/*.jsonl") == ["day=1/a.jsonl", "day=2/c.jsonl", "day=2/deep/d.jsonl", "top.jsonl"]
    assert names("g/day=?") == ["day=1", "day=2"]
    assert names("none/*.jsonl") == []
    assert [file.path.removeprefix(f"{store}/g/") for file in expand([f"{store}/g", f"{store}/g/day=1/"])] == [
        "day=1/a.jsonl", "day=1/b.csv", "top.jsonl"
    ]  # fmt: skip


@pytest.mark.parametrize("range_bytes", [100, 1000, 1 << 20])
def test_lines_by_byte_ranges(store: str, range_bytes: int) -> None:
    rows = [b'{"n": %d, "x": "%s"}' % (n, b"x" * (n % 37)) for n in range(200)]
    locations.write_bytes(f"{store}/lines/log.jsonl", b"\n".join(rows))
    (file,) = expand([f"{store}/lines/*.jsonl"])
    assert [row.raw for part in ranges([file], range_bytes=range_bytes) for row in rows_of(part)] == rows


def test_packed_files_and_columns(store: str) -> None:
    rows = [{"n": n, "t": "text"} for n in range(50)]
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(rows), sink, row_group_size=10)
    parquet = sink.getvalue().to_pybytes()
    locations.write_bytes(f"{store}/packed/a.parquet", parquet)
    locations.write_bytes(f"{store}/packed/b.json.gz", gzip.compress(json.dumps(rows).encode()))
    files = expand([f"{store}/packed/"])
    assert [file.kind for file in files] == ["parquet", "json"]
    for file in files:
        got = list(rows_of(Range(file)))
        assert [row.problem for row in got] == [None] * 50
        assert [json.loads(row.raw) for row in got] == rows
        assert first_rows(file) == rows[:20]
    locations.write_bytes(f"{store}/torn/a.parquet", parquet[:-100])
    (torn,) = [row for file in expand([f"{store}/torn/*"]) for row in rows_of(Range(file))]
    assert (torn.problem or "").startswith("unreadable_rest: ")


def test_what_is_not_there_is_named_with_the_way_out(store: str) -> None:
    with pytest.raises(DataError, match=rf"{store}/gone.jsonl: no such file"):
        expand([f"{store}/gone.jsonl"])
    with pytest.raises(DataError, match=rf"{store}/gone.jsonl: cannot be read .* AWS_ACCESS_KEY_ID"):
        locations.open_input(f"{store}/gone.jsonl")
    with pytest.raises(DataError, match=r"s3://no-such-bucket/x: cannot be read .*AWS_ENDPOINT_URL"):
        locations.list_directory("s3://no-such-bucket/x")
    with pytest.raises(StorageError, match=r"s3://no-such-bucket/x: cannot be written .*AWS_ENDPOINT_URL"):
        locations.write_bytes("s3://no-such-bucket/x", b"data")


def test_a_file_that_goes_away_while_it_is_read_is_no_content(store: str) -> None:
    uri = f"{store}/away.jsonl"
    locations.write_bytes(uri, b"[1]\n" * 10)
    (file,) = expand([uri])
    system, path = locations.filesystem_of(uri)
    system.delete_file(path)
    with pytest.raises(DataError, match="away.jsonl: cannot be read"):
        list(rows_of(Range(file)))


def test_a_store_out_of_reach_is_named(store: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    with pytest.raises(DataError, match=r"x.jsonl: cannot be read .* Could ?n[o']t connect .* AWS_ENDPOINT_URL"):
        expand([f"{store}/x.jsonl"])
