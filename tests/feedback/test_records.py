"""Logs to settled records on a real cluster: nothing lost, nothing twice, the same parts every time."""

from __future__ import annotations

import gzip
import json
import random
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bco_ray.config import DataSpec
from bco_ray.feedback import records
from bco_ray.feedback.identity import bucket_of
from bco_ray.feedback.records import copy_records
from bco_ray.pipeline.data import check_log, import_log
from bco_ray.pipeline.log import read_log, resolve_log
from bco_ray.schema import RECORDS, SETTLED, schema_name
from bco_ray.storage import files
from bco_ray.storage.quarantine import Quarantine
from bco_ray.storage.records import RecordsManifest, load_records
from bco_ray.telemetry import Phases

pytestmark = [pytest.mark.ray, pytest.mark.timeout(300)]

QUIET = Phases(quiet=True)


def read(storage: Path, *logs: Path, **data: Any) -> tuple[Path, RecordsManifest]:
    log = resolve_log(DataSpec(feedback=[str(path) for path in logs], **data), storage)
    return log.directory, read_log(log, QUIET)


def rows_of(directory: Path) -> list[dict[str, Any]]:
    """All parts in order of their names."""
    return [row for part in load_records(directory).parts for row in pq.read_table(directory / part.file).to_pylist()]


def write(path: Path, rows: list[Any]) -> Path:
    lines = [row if isinstance(row, bytes) else json.dumps(row).encode() for row in rows]
    data = b"\n".join(lines) + b"\n"
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


def votes(count: int, *, seed: int = 0, users: int = 20) -> list[Any]:
    """Votes of some users on some answers; people change their minds, some stay neutral."""
    chance = random.Random(seed)
    return [
        {"prompt": f"Question {(answer := chance.randrange(count // 3)) % 50}?", "completion": f"Answer {answer}.",
         "response_id": f"r{answer}", "user": f"user {chance.randrange(users)}", "updated_at": 1000.0 + n,
         "label": chance.choice([True, False, None]), "source": "test"}
        for n in range(count)
    ]  # fmt: skip


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory, ray_cluster: None) -> Path:
    return tmp_path_factory.mktemp("records")


def test_every_vote_is_settled_once_and_accounted_for(storage: Path) -> None:
    said = votes(3000)
    log = write(storage / "a.jsonl", [*said[:2000], b"{torn", b"\xff", {"prompt": "q", "completion": "a"}])
    more = write(storage / "b.jsonl.gz", [*said[2000:], *said[:500]])
    directory, manifest = read(storage, log, more)
    last = {(vote["user"], vote["response_id"]): vote for vote in said}
    standing = {key: vote["label"] for key, vote in last.items() if vote["label"] is not None}
    rows = rows_of(directory)
    assert manifest.read == 3503 == manifest.kept + sum(manifest.drops.values())
    assert manifest.kept == len(rows) == len(standing)
    assert {reason: manifest.drops[reason] for reason in ("invalid_json", "invalid_utf8", "missing_label")} == {
        "invalid_json": 1, "invalid_utf8": 1, "missing_label": 1,
    }  # fmt: skip
    assert Counter(row["label"] for row in rows) == Counter(standing.values())
    assert {row["response_id"]: row["completion"] for row in rows}["r7"].find("Answer 7.") > 0
    assert all(row["user"].startswith("u-") for row in rows)
    assert manifest.statistics["ups"] == sum(row["label"] for row in rows)


def test_parts_are_sorted_by_prompt_and_a_prompt_is_in_one_bucket(storage: Path) -> None:
    directory, manifest = read(storage, write(storage / "sorted.jsonl", votes(800)))
    for part in manifest.parts:
        table = pq.read_table(directory / part.file)
        assert schema_name(table.schema) == schema_name(SETTLED)
        hashes = table["prompt_hash"].to_pylist()
        assert hashes == sorted(hashes)
        assert {bucket_of(value, manifest.bits) for value in hashes} == {part.bucket}
        assert part.chosen == sum(table["label"].to_pylist())
        assert part.rows == table.num_rows
    files.verify_directory(directory)


def test_reading_again_gives_the_same_bytes_and_a_finished_directory_is_left_alone(storage: Path) -> None:
    log = write(storage / "again.jsonl", votes(500))
    directory, manifest = read(storage, log)
    first = {part.file: (directory / part.file).read_bytes() for part in manifest.parts}
    changed = (directory / files.MANIFEST).stat().st_mtime_ns
    assert read(storage, log) == (directory, manifest)
    assert (directory / files.MANIFEST).stat().st_mtime_ns == changed
    (directory / files.MANIFEST).unlink()  # killed before the commit
    (directory / "part-99999-0000.parquet").write_bytes(b"leftover")
    assert read(storage, log) == (directory, manifest)
    assert {part.file: (directory / part.file).read_bytes() for part in manifest.parts} == first
    assert not (directory / "part-99999-0000.parquet").exists()


def test_rules_are_part_of_the_address(storage: Path) -> None:
    log = write(storage / "rules.jsonl", votes(300))
    plain, capped = read(storage, log), read(storage, log, max_votes_per_user=3)
    assert plain[0] != capped[0]
    by_user = Counter(row["user"] for row in rows_of(capped[0]))
    assert max(by_user.values()) == 3
    assert capped[1].drops["over_user_cap"] == plain[1].kept - capped[1].kept > 0
    newest: dict[str, list[float]] = {}
    for row in rows_of(plain[0]):
        newest.setdefault(row["user"], []).append(row["updated_at"])
    assert {row["updated_at"] for row in rows_of(capped[0])} == {
        time for times in newest.values() for time in sorted(times)[-3:]
    }


def answers_and_ratings(storage: Path) -> tuple[Path, Path]:
    """Two logs that belong together."""
    answers = [
        {"id": f"chatcmpl-{n}", "object": "chat.completion", "model": "bot/1",
         "request": {"messages": [{"role": "user", "content": f"Question {n % 7}?"}]},
         "choices": [{"index": 0, "message": {"role": "assistant", "content": f"Answer {n}"}, "finish_reason": "stop"}]}
        for n in range(60)
    ]  # fmt: skip
    ratings = [
        {"response_id": f"chatcmpl-{n}", "user": f"u{n % 3}", "rating": ["thumbs_up", "thumbs_down", None][n % 3],
         "created_at": 1000 + n}
        for n in range(90)
    ]  # fmt: skip
    return write(storage / "answers.jsonl.gz", answers), write(storage / "ratings.jsonl", [*ratings, b"oops"])


def test_answers_and_votes_apart_are_joined(storage: Path) -> None:
    log = answers_and_ratings(storage)
    directory, manifest = read(storage, *log)
    assert manifest.drops == {"invalid_json": 1, "neutral": 20, "no_response": 30}
    assert (manifest.read, manifest.kept) == (91, 40)
    assert manifest.answers == {"responses": 60, "voted": 60, "unvoted": 0}
    for row in rows_of(directory):
        number = int(row["response_id"].removeprefix("chatcmpl-"))
        assert json.loads(row["completion"]) == [{"role": "assistant", "content": f"Answer {number}"}]
        assert (row["label"], row["model"]) == (number % 3 == 0, "bot/1")


def test_one_block_or_a_shuffle_give_the_same_bytes(storage: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A small log is settled in one block, a large one (and here the same) through the shuffles, cap included."""
    log = (*answers_and_ratings(storage), write(storage / "both.jsonl", votes(700)))
    directory, manifest = read(storage, *log, max_votes_per_user=20)
    first = {part.file: (directory / part.file).read_bytes() for part in manifest.parts}
    assert manifest.drops["over_user_cap"] > 0
    (directory / files.MANIFEST).unlink()
    monkeypatch.setattr(records, "ONE_BLOCK_BYTES", 0)
    assert read(storage, *log, max_votes_per_user=20) == (directory, manifest)
    assert {part.file: (directory / part.file).read_bytes() for part in manifest.parts} == first


def test_refused_rows_name_their_place(storage: Path) -> None:
    log = write(storage / "bad.jsonl", [*votes(20), {"prompt": "q", "completion": "a", "label": "maybe"}])
    directory, _ = read(storage, log)
    (row,) = [r for r in Quarantine(directory / "quarantine" / "import").examples(10) if r["reason"] == "unknown_label"]
    assert row["file"] == str(log)
    assert log.read_bytes()[row["position"] :].startswith(row["raw"])


def test_an_import_is_a_log_again(storage: Path) -> None:
    log = write(storage / "import.jsonl", votes(300))
    facts = import_log(DataSpec(feedback=[str(log)]), storage, str(storage / "out"), QUIET)
    assert facts["read"] == 300 == facts["kept"] + sum(facts["drops"].values())
    written = sorted((storage / "out").glob("*.parquet"))
    table = pa.concat_tables([pq.read_table(path) for path in written])
    assert table.schema.equals(RECORDS)
    assert table.num_rows == facts["kept"]
    again, manifest = read(storage, storage / "out")
    assert (manifest.read, manifest.drops) == (facts["kept"], {})
    assert sorted(row["user"] for row in rows_of(again)) == sorted(table["user"].to_pylist())
    before = {path: path.read_bytes() for path in written}
    copy_records(resolve_log(DataSpec(feedback=[str(log)]), storage).directory, str(storage / "out"), lambda *_: None)
    assert {path: path.read_bytes() for path in sorted((storage / "out").glob("*.parquet"))} == before


def test_real_votes_add_up(storage: Path, shared_data: Path) -> None:
    crowd = [str(shared_data / name) for name in ("crowd_responses.jsonl.gz", "crowd_votes.jsonl.gz")]
    checked = check_log(DataSpec(feedback=crowd), storage, QUIET)
    assert checked.read == 17_609 == checked.kept + sum(checked.drops.values())
    assert checked.answers == {"responses": 1108, "voted": 698, "unvoted": 410}
    assert checked.verdict.usable
    panda = check_log(DataSpec(feedback=[str(shared_data / "pandalm_thumbs.jsonl.gz")]), storage, QUIET)
    assert panda.read == 5342 == panda.kept + sum(panda.drops.values())
    assert panda.drops == {"empty_completion": 156, "invalid_completion": 14}
