"""Segments and manifests: what counts, what a crash leaves, what two exporters do to each other."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from bco_ray.errors import StorageError
from bco_ray.feedback.blocks import vote_row
from bco_ray.feedback.settling import Rules, settle
from bco_ray.schema import RECORDS, Record, row_to_fields, schema_name
from bco_ray.storage import export as exporting
from bco_ray.storage import files
from bco_ray.storage.export import FeedbackManifest, export, load_manifest, verify_segments
from bco_ray.storage.feedback_log import Choice, Completion, FeedbackLog, Vote
from bco_ray.storage.salt import hash_user, user_salt

ANSWER = "chatcmpl-1"


@pytest.fixture
def log(tmp_path: Path) -> FeedbackLog:
    log = FeedbackLog.open(tmp_path / "storage")
    prompt = [{"role": "system", "content": "be brief"}, {"role": "user", "content": [{"type": "text", "text": "hé"}]}]
    choices = [Choice("yes", [1], "stop"), Choice("no, and", [2, 3], "length")]
    log.add_completion(Completion(ANSWER, 900.0, "helper/3", "fp", prompt, [7, 8], choices, {"temperature": 1.0}))
    return log


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "storage" / "feedback"


def vote(log: FeedbackLog, label: bool | None, user: str, choice: int = 0, **fields: Any) -> str:
    return log.add_vote(Vote(response_id=ANSWER, label=label, user=user, choice_index=choice, **fields))[0].id


def exported(log: FeedbackLog, directory: Path) -> FeedbackManifest:
    manifest = export(log, directory)
    assert manifest is not None
    verify_segments(directory, manifest)
    return manifest


def effective(directory: Path, manifest: FeedbackManifest) -> dict[str, dict[str, Any]]:
    """What a reader of this manifest trains on: id -> row."""
    rows = [
        {**vote_row(row, bits=3), "file": s.file, "position": position, "entry": 0}
        for s in manifest.segments
        for position, row in enumerate(pq.read_table(directory / s.file).to_pylist())
    ]
    assert len({row["id"] for row in rows}) == len(rows) == manifest.rows
    kept, _ = settle(rows, Rules(), {})
    return {row["id"]: {name: row[name] for name in RECORDS.names} for row in kept}


def test_nothing_to_export_before_the_first_vote(log: FeedbackLog, directory: Path) -> None:
    assert export(log, directory) is None
    with pytest.raises(StorageError, match="Nothing has been exported"):
        load_manifest(directory)


def test_a_vote_becomes_a_canonical_record(log: FeedbackLog, directory: Path) -> None:
    vote_id = vote(log, False, "ann", 1, comment="why", tags=["a"], correction="No.", source="web", metadata={"k": "v"})
    manifest = exported(log, directory)
    (segment,) = manifest.segments
    found = pq.read_schema(directory / segment.file)
    assert (found.equals(RECORDS), schema_name(found)) == (True, "records/2")
    record = Record.model_validate(row_to_fields(effective(directory, manifest)[vote_id]))
    assert record.prompt[1].content == [{"type": "text", "text": "hé"}]
    assert [m.model_dump() for m in record.completion] == [{"role": "assistant", "content": "no, and"}]
    assert (record.label, record.model, record.source) == (False, "helper/3", "web")
    assert record.user == hash_user("ann", user_salt(directory.parent)), "segments hold no names"
    assert (record.comment, record.tags, record.correction) == ("why", ["a"], "No.")
    assert record.metadata == {
        "k": "v",
        "response_id": ANSWER,
        "choice_index": 1,
        "finish_reason": "length",
        "ended": False,
        "endpoint": "chat",
    }


def test_anonymous_voter_has_no_user(log: FeedbackLog, directory: Path) -> None:
    log.add_vote(Vote(response_id=ANSWER, label=True))
    (row,) = effective(directory, exported(log, directory)).values()
    assert row["user"] is None


def test_nothing_new_gives_the_same_manifest(log: FeedbackLog, directory: Path) -> None:
    vote(log, True, "ann")
    first = exported(log, directory)
    assert export(log, directory) == first
    assert [p.name for p in directory.glob("manifest-*")] == ["manifest-1.json"]


def test_later_votes_make_a_new_segment_and_leave_the_old(log: FeedbackLog, directory: Path) -> None:
    vote(log, True, "ann")
    first = exported(log, directory)
    vote(log, True, "bob")
    second = exported(log, directory)
    assert second.number == 2
    assert second.segments[:1] == first.segments
    assert [(s.from_seq, s.to_seq) for s in second.segments] == [(1, 1), (2, 2)]
    assert load_manifest(directory, 1) == first
    assert load_manifest(directory) == second


def test_change_of_mind_after_export(log: FeedbackLog, directory: Path) -> None:
    up = vote(log, True, "ann")
    other = vote(log, True, "ann", choice=1)
    first = exported(log, directory)
    down = vote(log, False, "ann")
    second = exported(log, directory)
    assert set(effective(directory, second)) == {other, down}
    assert set(effective(directory, first)) == {up, other}, "a pinned manifest keeps its meaning"


def test_change_of_mind_before_export(log: FeedbackLog, directory: Path) -> None:
    vote(log, True, "ann")
    last = vote(log, False, "ann")
    assert set(effective(directory, exported(log, directory))) == {last}


def test_withdrawn_votes_count_for_nothing(log: FeedbackLog, directory: Path) -> None:
    gone, kept = vote(log, True, "ann"), vote(log, True, "bob")
    exported(log, directory)
    log.delete_vote(gone)
    second = exported(log, directory)
    assert set(effective(directory, second)) == {kept}
    back = vote(log, False, "ann")
    assert set(effective(directory, exported(log, directory))) == {kept, back}


def test_withdrawals_are_events_that_leave_nothing(log: FeedbackLog, directory: Path) -> None:
    vote(log, None, "ann")
    manifest = exported(log, directory)
    assert (manifest.watermark, manifest.rows, effective(directory, manifest)) == (1, 1, {})


def test_large_exports_are_cut_into_segments(
    log: FeedbackLog, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exporting, "SEGMENT_ROWS", 2)
    ids = {vote(log, True, str(i)) for i in range(4)}
    manifest = exported(log, directory)
    assert [s.rows for s in manifest.segments] == [2, 2]
    vote(log, None, "0")
    ids.add(vote(log, True, "5"))
    manifest = exported(log, directory)
    assert [(s.from_seq, s.to_seq) for s in manifest.segments] == [(1, 2), (3, 4), (5, 6)]
    assert len(effective(directory, manifest)) == len(ids) - 1


def test_interrupted_between_segment_and_manifest(
    log: FeedbackLog, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = vote(log, True, "ann")
    before = exported(log, directory)
    second = vote(log, True, "bob")
    with monkeypatch.context() as patch:
        patch.setattr(files, "write_json", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            export(log, directory)
    assert (directory / "part-2-2.parquet").is_file()
    assert load_manifest(directory) == before, "readers do not see the leftover"
    third = vote(log, False, "cem")
    manifest = exported(log, directory)
    assert set(effective(directory, manifest)) == {first, second, third}
    assert {p.name for p in directory.glob("*.parquet")} == {s.file for s in manifest.segments}


def test_two_exporters_at_once_write_one_manifest(log: FeedbackLog, directory: Path) -> None:
    for i in range(20):
        vote(log, True, str(i))
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: export(FeedbackLog.open(directory.parent), directory), range(4)))
    assert all(manifest == found[0] for manifest in found)
    assert found[0] is not None
    assert found[0].number == 1


_EXPORTER = """
import sys
from pathlib import Path
from bco_ray.storage.export import export
from bco_ray.storage.feedback_log import FeedbackLog, Vote
log = FeedbackLog.open(Path(sys.argv[1]))
print("ready", flush=True)
for i in range(100_000):
    log.add_vote(Vote(response_id="chatcmpl-1", label=True, user=f"{sys.argv[2]}-{i % 7}"))
    export(log, Path(sys.argv[1]) / "feedback")
"""


def test_exporters_killed_at_any_point(log: FeedbackLog, directory: Path) -> None:
    for kill in range(3):
        command = [sys.executable, "-c", _EXPORTER, str(directory.parent), str(kill)]
        exporter = subprocess.Popen(command, stdout=subprocess.PIPE)
        assert exporter.stdout is not None
        exporter.stdout.readline()
        time.sleep(0.2 + 0.11 * kill)
        exporter.kill()
        exporter.communicate(timeout=60)
    manifest = exported(log, directory)
    standing = {e.id for e in log.list_votes(limit=100_000)[0] if e.effective}
    assert set(effective(directory, manifest)) == standing
    assert {p.name for p in directory.glob("*.parquet")} == {s.file for s in manifest.segments}


def test_damage_is_named(log: FeedbackLog, directory: Path) -> None:
    vote(log, True, "ann")
    manifest = exported(log, directory)
    segment = directory / manifest.segments[0].file
    content = segment.read_bytes()
    segment.write_bytes(content[:-1] + b"x")
    with pytest.raises(StorageError, match=segment.name):
        verify_segments(directory, manifest)
    segment.unlink()
    with pytest.raises(StorageError, match=segment.name):
        load_manifest(directory)
    with pytest.raises(StorageError, match=r"manifest 7.*There are: 1"):
        load_manifest(directory, 7)
    (directory / "manifest-1.json").write_text(json.dumps({"number": "one"}))
    with pytest.raises(StorageError, match="not a feedback manifest"):
        load_manifest(directory, 1)


def test_a_directory_of_another_log_is_refused(log: FeedbackLog, directory: Path, tmp_path: Path) -> None:
    vote(log, True, "ann")
    exported(log, directory)
    with pytest.raises(StorageError, match="not its log"):
        export(FeedbackLog.open(tmp_path / "other"), directory)


def test_export_leaves_foreign_files_alone(log: FeedbackLog, directory: Path) -> None:
    directory.mkdir()
    (directory / "imported.parquet").write_bytes(b"")
    vote(log, True, "ann")
    exported(log, directory)
    assert (directory / "imported.parquet").is_file()
