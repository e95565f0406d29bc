"""Uploads: what is looked at, what is stored, and what a crash may leave; on both databases."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import sqlalchemy as sa
from backports import zstd

from bco_ray.control import checking
from bco_ray.control.checking import check_upload
from bco_ray.control.files import FileInUseError, FileStore, InvalidFileError, StoredFile, hold
from bco_ray.control.job import News, Order, body_hash, new_id
from bco_ray.control.jobs import JobStore
from bco_ray.errors import StorageError
from bco_ray.feedback.lines import first_rows
from bco_ray.feedback.sources import expand
from bco_ray.storage import files as disk
from bco_ray.storage import job_tables
from bco_ray.storage.database import open_database, reading, writing
from bco_ray.storage.feedback_rows import NotFoundError
from bco_ray.storage.job_tables import files
from bco_ray.storage.log_names import KNOWN, READABLE, extension_of

VOTE = {"prompt": "hi", "completion": "hello", "label": True}
LINE = json.dumps(VOTE).encode() + b"\n"
UNKNOWN = f"file-{'0' * 24}"


@pytest.fixture(params=["sqlite", "postgresql"])
def engine(request: pytest.FixtureRequest, tmp_path: Path) -> sa.Engine:
    url = request.getfixturevalue("postgresql") if request.param == "postgresql" else None
    return open_database(tmp_path, url)


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "files"


@pytest.fixture
def store(engine: sa.Engine, directory: Path) -> FileStore:
    return FileStore(engine, directory)


def add(store: FileStore, name: str = "votes.jsonl", content: bytes = LINE, project: str = "acme") -> StoredFile:
    return store.add(project, name, "fine-tune", [content[:7], content[7:]])


def rows(engine: sa.Engine) -> int:
    with reading(engine) as connection:
        return connection.execute(sa.select(sa.func.count()).select_from(files)).scalar_one()


def age(path: Path, seconds: float = 7200) -> None:
    for part in (*path.rglob("*"), path):
        os.utime(part, (time.time() - seconds,) * 2)


# --- the store --------------------------------------------------------------------------------------------------------


def test_what_is_added_is_read_back(store: FileStore, directory: Path) -> None:
    added = add(store, "../../My Votes.JSONL", LINE * 3)
    path = store.open("acme", added.id)
    assert store.get("acme", added.id) == added
    assert (added.bytes, added.sha256) == (3 * len(LINE), hashlib.sha256(LINE * 3).hexdigest())
    assert (path.read_bytes(), path) == (LINE * 3, directory / added.id / "content.jsonl")
    assert [p.name for p in directory.iterdir()] == [added.id]


def test_readers_tell_kind_and_compression_by_the_stored_name(store: FileStore) -> None:
    packed = add(store, "a b.ndjson.gz", gzip.compress(LINE))
    (source,) = expand([str(store.open("acme", packed.id))])
    assert (source.kind, source.compression) == ("jsonl", "gz")
    assert first_rows(source) == [VOTE]


@pytest.mark.parametrize(
    ("name", "content"), [("x.jsonl", b""), ("x.txt", LINE), ("x", LINE), ("x.jsonl", b"[1]\n"), ("x.zst", LINE)]
)
def test_what_is_no_log_leaves_nothing(
    store: FileStore, engine: sa.Engine, directory: Path, name: str, content: bytes
) -> None:
    with pytest.raises(InvalidFileError, match=name):
        add(store, name, content)
    assert rows(engine) == 0
    assert not directory.exists() or list(directory.iterdir()) == []


def test_an_upload_that_breaks_off_leaves_nothing(store: FileStore, engine: sa.Engine, directory: Path) -> None:
    def breaking_off() -> Iterator[bytes]:
        yield LINE
        raise ConnectionResetError

    with pytest.raises(StorageError):
        store.add("acme", "votes.jsonl", "fine-tune", breaking_off())
    assert (rows(engine), list(directory.iterdir())) == (0, [])


def test_a_full_disk_says_so(store: FileStore, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageError, match="No space left"):
        add(store)


def test_bytes_are_whole_and_in_place_before_there_is_a_row(
    store: FileStore, engine: sa.Engine, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def crash(stored: StoredFile, _actor: str) -> StoredFile:
        assert (directory / stored.id / "content.jsonl").read_bytes() == LINE
        raise KeyboardInterrupt

    kept = add(store)
    monkeypatch.setattr(store, "_insert", crash)
    with pytest.raises(KeyboardInterrupt):
        add(store)
    assert rows(engine) == 1
    (orphan,) = (path for path in directory.iterdir() if path.name != kept.id)
    assert store.sweep(3600) == [], "somebody may be about to add its row"
    age(orphan)
    age(directory / kept.id)
    assert store.sweep(3600) == [orphan.name]
    assert [path.name for path in directory.iterdir()] == [kept.id]


def test_sweep_takes_what_crashes_leave_and_nothing_else(store: FileStore, directory: Path) -> None:
    scratch, foreign = directory / f".{UNKNOWN}.abc.tmp", directory / "notes"
    for made in (scratch, foreign):
        made.mkdir(parents=True)
        (made / "content.jsonl").write_bytes(LINE)
    age(directory)
    (scratch / "content.jsonl").write_bytes(LINE)
    assert store.sweep(3600) == [], "it is being written to"
    age(scratch)
    assert store.sweep(3600) == [scratch.name]
    assert foreign.is_dir()


def test_sweep_without_any_upload(store: FileStore) -> None:
    assert store.sweep(0) == []


def test_a_deleted_file_keeps_its_row_only(store: FileStore, engine: sa.Engine, directory: Path) -> None:
    added = add(store)
    store.delete("acme", added.id)
    assert (rows(engine), list(directory.iterdir())) == (1, [])
    assert store.list("acme") == ([], False)
    for use in (store.get, store.open, store.delete):
        with pytest.raises(NotFoundError, match=added.id):
            use("acme", added.id)


def test_bytes_that_a_crash_kept_from_going_are_swept(
    store: FileStore, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    added = add(store)
    with monkeypatch.context() as patch:
        patch.setattr("bco_ray.control.files.disk.remove_tree", lambda _: None)
        store.delete("acme", added.id)
    age(directory / added.id)
    assert store.sweep(3600) == [added.id]
    assert list(directory.iterdir()) == []


def test_missing_bytes_are_not_a_missing_file(store: FileStore, directory: Path) -> None:
    added = add(store)
    (directory / added.id / "content.jsonl").unlink()
    with pytest.raises(StorageError, match="Restore it") as raised:
        store.open("acme", added.id)
    assert not isinstance(raised.value, NotFoundError)


@pytest.mark.parametrize("use", ["get", "open", "delete"])
def test_other_projects_files_are_unknown_ones(store: FileStore, use: str) -> None:
    theirs = add(store, project="theirs")
    words = list[str]()
    for file_id in (theirs.id, UNKNOWN):
        with pytest.raises(NotFoundError) as raised:
            getattr(store, use)("acme", file_id)
        words.append(str(raised.value).replace(file_id, "it"))
    assert words[0] == words[1]
    assert store.open("theirs", theirs.id).read_bytes() == LINE


@pytest.mark.parametrize("file_id", ["", "..", "../x", "file-\0", f"{UNKNOWN}\n", "file-" + "0" * 23 + "é", "x" * 9999])
def test_what_is_no_id_is_unknown(store: FileStore, file_id: str) -> None:
    for use in (store.get, store.open, store.delete):
        with pytest.raises(NotFoundError):
            use("acme", file_id)
    with pytest.raises(NotFoundError):
        store.list("acme", after=file_id)


def test_pages(store: FileStore) -> None:
    ids = [add(store).id for _ in range(5)]
    add(store, project="theirs")

    def page(**where: object) -> tuple[list[str], bool]:
        found, more = store.list("acme", **where)  # type: ignore[arg-type]
        return [stored.id for stored in found], more

    assert page() == (ids[::-1], False)
    assert page(limit=2) == ([ids[4], ids[3]], True)
    assert page(limit=3, after=ids[3]) == ([ids[2], ids[1], ids[0]], False)
    assert page(order="asc", limit=2, after=ids[0]) == ([ids[1], ids[2]], True)
    assert page(purpose="fine-tune", limit=5) == (ids[::-1], False)
    assert page(purpose="other") == ([], False)
    store.delete("acme", ids[3])
    assert page(limit=2, after=ids[3]) == ([ids[2], ids[1]], True), "whoever deletes while paging loses nothing"
    with pytest.raises(NotFoundError):
        page(after=store.list("theirs")[0][0].id)


def test_many_at_once(store: FileStore, engine: sa.Engine) -> None:
    with ThreadPoolExecutor(8) as pool:
        added = list(pool.map(lambda number: add(store, content=LINE * number), range(1, 17)))
    assert len({stored.id for stored in added}) == 16 == rows(engine)
    assert all(store.open("acme", stored.id).stat().st_size == stored.bytes for stored in added)


# --- jobs made of them ------------------------------------------------------------------------------------------------


def order(file_id: str, project: str = "acme") -> Order:
    request = {"model": "m", "training_file": file_id}
    return Order(new_id("ftjob"), project, "key1", request, {"name": "x"}, {}, body_hash(request))


def test_what_a_job_is_made_from_stays_until_it_has_ended(engine: sa.Engine, store: FileStore) -> None:
    jobs, used, other = JobStore(engine), add(store), add(store)
    job, _ = jobs.create(order(used.id), file_id=used.id)
    for status in ("queued", "running", "queued", "paused"):
        with pytest.raises(FileInUseError, match=rf"{used.id}: {job.id} \({jobs.get(job.id).status}\)"):
            store.delete("acme", used.id)
        jobs.move(job.id, status, News("moved"))
    assert store.open("acme", used.id).is_file()
    store.delete("acme", other.id)
    jobs.move(job.id, "cancelled", News("moved"))
    store.delete("acme", used.id)


def test_no_job_is_made_of_what_is_gone(engine: sa.Engine, store: FileStore) -> None:
    gone, theirs, jobs = add(store), add(store, project="rival"), JobStore(engine)
    store.delete("acme", gone.id)
    for file_id in (gone.id, theirs.id, UNKNOWN):
        with pytest.raises(NotFoundError, match="no such file"):
            jobs.create(order(file_id), file_id=file_id)
    assert jobs.page("acme") == ([], False)


def test_of_a_job_and_a_deletion_at_once_one_is_refused(engine: sa.Engine, store: FileStore) -> None:
    def outcome(deed: Callable[[], object]) -> str:
        try:
            deed()
        except (FileInUseError, NotFoundError) as error:
            return type(error).__name__
        return "done"

    jobs = JobStore(engine)
    with ThreadPoolExecutor(2) as pool:
        for _ in range(30):
            file_id = add(store).id
            making = pool.submit(outcome, partial(jobs.create, order(file_id), file_id=file_id))
            deleting = pool.submit(outcome, partial(store.delete, "acme", file_id))
            assert (making.result(), deleting.result()) in {("done", "FileInUseError"), ("NotFoundError", "done")}


def test_a_deletion_waits_for_a_job_that_is_being_made(engine: sa.Engine, store: FileStore) -> None:
    file_id = add(store).id
    with ThreadPoolExecutor(1) as pool:
        with writing(engine) as connection:
            hold(connection, "acme", file_id)
            deleting = pool.submit(store.delete, "acme", file_id)
            made = order(file_id)
            row = {"created_at": 0, "status": "queued", "attempt": 0, "holds_cluster": False}
            connection.execute(sa.insert(job_tables.jobs).values(**row, **vars(made)))
            time.sleep(0.2)
            assert not deleting.done()
        with pytest.raises(FileInUseError, match=made.id):
            deleting.result(30)


# --- the first look ---------------------------------------------------------------------------------------------------


@pytest.fixture
def check(tmp_path: Path) -> Callable[[str, bytes], str | None]:
    def checked(name: str, content: bytes) -> str | None:
        path = tmp_path / f"content{extension_of(name)}"
        path.write_bytes(content)
        return check_upload(path, name)

    return checked


def test_it_knows_what_readers_know() -> None:
    assert {extension for extension in READABLE if extension_of(f"a{extension}") == extension} == set(READABLE)
    assert all(extension in KNOWN for extension in READABLE if extension.count(".") == 1)
    for name in ("a", "a.txt", "a.gz", "jsonl", "a.jsonl.bz2", "a.parquet.gz", "a.jsonl\n", "a.jsonl/../b"):
        assert extension_of(name) == ""


def parquet(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink)
    return bytes(sink.getvalue())


def arrow(table: pa.Table, make: Callable[..., pa.RecordBatchWriter]) -> bytes:
    sink = pa.BufferOutputStream()
    with make(sink, table.schema) as writer:
        writer.write_table(table)
    return bytes(sink.getvalue())


TABLE = pa.table({"prompt": ["hi"], "label": [True]})
ROWS = json.dumps([VOTE, VOTE]).encode()
CSV = b'prompt,completion,label\nhi,"two\nlines, and ""quotes""",1\n\n'

GOOD = {
    "a.jsonl": LINE,
    "b.jsonl": b"\xef\xbb\xbf" + LINE + b"\r\n \n" + LINE.rstrip(),
    "late.jsonl": LINE * checking.LOOKED_AT_ROWS + b"broken",
    "one-long-row.jsonl": json.dumps({"prompt": "x" * checking.LOOKED_AT_BYTES}).encode(),
    "a.jsonl.gz": gzip.compress(LINE),
    "a.jsonl.zst": zstd.compress(LINE),
    "a.ndjson": LINE,
    "array.json": b"\xef\xbb\xbf \n" + ROWS,
    "indented.json": json.dumps([VOTE], indent=2).encode(),
    "one.json": json.dumps(VOTE, indent=2).encode(),
    "lines.json": LINE * 3,
    "large.json": json.dumps([{"prompt": "é" * 2_000_000}] * 3, ensure_ascii=False).encode(),
    "large-ascii.json": json.dumps([{"a": [-1.5e-7, True, "\n\u1234"] * 100_000}] * 3).encode(),
    "a.csv": CSV,
    "a.csv.gz": gzip.compress(CSV),
    "large.csv": b"prompt,label\n" + b'"' + b"x" * 5_000_000 + b'",1\n',
    "large-cells.csv": b"prompt,label\n" + (b'"' + b"line\n" * 40_000 + b'",1\n') * 40,
    "a.parquet": parquet(TABLE),
    "stream.arrow": arrow(TABLE, pa.ipc.new_stream),
    "file.arrow": arrow(TABLE, pa.ipc.new_file),
}


@pytest.mark.parametrize("name", GOOD)
def test_logs_are_let_in(check: Callable[[str, bytes], str | None], name: str) -> None:
    assert check(name, GOOD[name]) is None


BAD = {
    "empty.jsonl": (b"", "the file is empty"),
    "blank.jsonl": (b"\n \n", "no rows"),
    "b.jsonl": (LINE + b"\n{\n", "b.jsonl, line 3: not JSON (Expecting property name"),
    "c.jsonl": (LINE + b'{"a": "\xff"}\n', "line 2: not UTF-8"),
    "d.jsonl": (LINE + b"[1]\n", "line 2: not a JSON object"),
    "deep.jsonl": (b"[" * 100_000 + b"\n", "line 1: not JSON"),
    "digits.jsonl": (b'{"a": ' + b"1" * 10_000 + b"}\n", "line 1: not JSON"),
    "pretty.jsonl": (b'{\n"a": 1}\n', "line 1: not JSON"),
    "a.jsonl.gz": (LINE, "cannot be read as .jsonl.gz"),
    "b.jsonl.gz": (gzip.compress(LINE)[:-9], "Was it cut off"),
    "a.jsonl.zst": (LINE, "cannot be read as .jsonl.zst"),
    "packed.jsonl": (gzip.compress(LINE), "line 1: not UTF-8"),
    "a.json": (ROWS[:-1], "line 1: the array does not end"),
    "b.json": (b"[{}\n,\n{]", "b.json, line 3: not JSON"),
    "c.json": (b"[{}\n{}]", "line 1: no comma"),
    "d.json": (b"[]", "no rows"),
    "e.json": (b"[{}, 1]", "line 1: not a JSON object"),
    "f.json": (b"hello", "line 1: not JSON"),
    "g.json": (b'[{}, {"a":\n\xff}]', "line 2: not UTF-8"),
    "h.json": (b"[" * 100_000, "line 1: not JSON"),
    "long.json": (b'[{"a": nope}, ' + b'{"a": 1}, ' * 500_000 + b"{}]", "line 1: not JSON"),
    "a.csv": (b"prompt,label\nhi\n", "line 2: 1 cells under a header of 2"),
    "b.csv": (b"prompt,label\n", "no rows"),
    "c.csv": (b"a,b,a\n1,2,3\n", "line 1: the header names a column twice"),
    "d.csv": (b" ,\n1,2\n", "line 1: the header names no column"),
    "e.csv": (b'a,b\n1,"2\n', "not CSV"),
    "f.csv": (b"a,b\n1,\xff\n", "line 2: not UTF-8"),
    "blank.csv": (b"\n\n", "no rows"),
    "a.parquet": (LINE, "cannot be read as .parquet"),
    "b.parquet": (parquet(TABLE)[:-20], "cannot be read as .parquet"),
    "c.parquet": (parquet(TABLE.slice(0, 0)), "no rows"),
    "a.arrow": (LINE, "cannot be read as .arrow"),
    "b.arrow": (b"ARROW1", "b.arrow"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_wrong_is_said_with_file_and_line(
    check: Callable[[str, bytes], str | None], tmp_path: Path, name: str
) -> None:
    content, words = BAD[name]
    problem = check(name, content)
    assert problem is not None
    assert problem.startswith(name)
    assert words in problem
    assert str(tmp_path) not in problem


def test_a_bomb_is_looked_at_and_not_unpacked(check: Callable[[str, bytes], str | None]) -> None:
    bomb = gzip.compress(LINE * 200 + b" " * (256 << 20), compresslevel=1)
    began = time.process_time()
    assert check("bomb.jsonl.gz", bomb) is None
    assert time.process_time() - began < 1


def test_anything_is_answered(check: Callable[[str, bytes], str | None]) -> None:
    content = b"".join(GOOD[name][:3000] for name in ("a.jsonl", "a.csv", "a.parquet", "stream.arrow", "a.jsonl.gz"))
    for extension in READABLE:
        for cut in range(0, len(content), 97):
            check(f"a{extension}", content[cut:])


def test_torn_tables_are_answered(check: Callable[[str, bytes], str | None]) -> None:
    for name in ("a.parquet", "stream.arrow", "file.arrow"):
        for at in range(0, len(GOOD[name]), 5):
            check(name, GOOD[name][:at] + b"\xff\x7f" + GOOD[name][at + 2 :])


def test_nothing_is_left_behind_by_new_directory(tmp_path: Path) -> None:
    """What `sweep` takes for an upload being written is what `disk.new_directory` makes."""
    from bco_ray.control.files import _OURS

    with disk.new_directory(tmp_path / UNKNOWN) as scratch:
        assert _OURS.fullmatch(scratch.name)
