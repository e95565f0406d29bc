"""`bco data erase`: every place that knows a person, what may be said of the models, and dying in between."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from bco_ray.errors import SpecError
from bco_ray.feedback.settling import Rules, settle
from bco_ray.feedback.statistics import LogSums
from bco_ray.pipeline import erase as erasing
from bco_ray.pipeline.erase import Erased, erase_votes
from bco_ray.schema import SCORED, SETTLED
from bco_ray.storage import erasures, files
from bco_ray.storage.erasures import erased_names
from bco_ray.storage.export import export, load_manifest, verify_segments
from bco_ray.storage.feedback_log import Choice, Completion, FeedbackLog, Vote
from bco_ray.storage.quarantine import Quarantine
from bco_ray.storage.records import PartFacts, RecordsManifest, commit_records, load_records
from bco_ray.storage.registry import Registry
from bco_ray.storage.salt import hash_user, user_salt
from bco_ray.storage.scored import ScoredManifest, ShardFacts, commit_scored
from bco_ray.telemetry import Phases

SALT = b"a salt of many bytes"


class KilledError(Exception):
    """As if the process had died."""


def row(number: int, voter: str, vote_id: str | None = None) -> dict[str, Any]:
    """A settled vote; u-... of `voter`."""
    text = json.dumps([{"role": "user", "content": f"{voter} asks"}])
    return {"file": "f", "position": number, "entry": 0, "prompt_hash": number, "id": vote_id or f"v{number}",
            "prompt": text, "completion": text, "label": number % 2 == 0, "user": hash_user(voter, SALT),
            "tags": [], "siblings": [], "weight": 1.0, "metadata": "{}"}  # fmt: skip


def write_records(directory: Path, rows: list[dict[str, Any]]) -> None:
    directory.mkdir(parents=True)
    table = pa.Table.from_pylist(rows, schema=SETTLED)
    pq.write_table(table, directory / "part-00000.parquet")
    refused = [{"file": "f", "position": 8, "reason": "empty", "detail": "no answer", "raw": raw} for raw in (
        b'{"user": "ann", "text": "mine"}', b'{"user": "joanna", "text": "hers"}')]  # fmt: skip
    Quarantine(directory / "quarantine" / "import").write(("f", 0), len(rows) + 2, refused)
    ups = sum(row["label"] for row in rows)
    part = PartFacts(file="part-00000.parquet", bucket=0, chosen=ups, rejected=len(rows) - ups)
    commit_records(
        directory,
        RecordsManifest(
            inputs={}, read=len(rows) + 2, kept=len(rows), drops={"empty": 2}, bits=1, parts=[part],
            statistics=LogSums.of(table).state_dict(),
        ),
    )  # fmt: skip


def write_scored(directory: Path, rows: list[dict[str, Any]]) -> None:
    directory.mkdir(parents=True)
    kept = [{name: row[name] for name in ("file", "position", "entry", "id", "user", "prompt_hash", "label", "weight")}
            | {"split": "train", "n_tokens": 3, "input_ids": [4, 5, 6], "completion_mask": [False, True, True],
               "reference_logp": -1.0} for row in rows]  # fmt: skip
    pq.write_table(pa.Table.from_pylist(kept, schema=SCORED), directory / "part-00000.parquet")
    refused = {"file": "f", "position": 7, "reason": "too_long", "detail": f"of {hash_user('ann', SALT)}", "raw": b""}
    Quarantine(directory / "quarantine").write(("f", 0), len(rows) + 1, [refused])
    (directory / "report").mkdir()
    (directory / "report" / "report.html").write_text("ann asks")
    ups = sum(row["label"] for row in rows)
    facts = ShardFacts(file="part-00000.parquet", train_chosen=ups, train_rejected=len(rows) - ups,
                       validation_chosen=0, validation_rejected=0, train_tokens=3 * len(rows))  # fmt: skip
    commit_scored(
        directory,
        ScoredManifest(inputs={}, read=len(rows), kept=len(rows), drops={}, matching={}, shards=[facts]),
    )


@pytest.fixture
def storage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """ann asked r1, on which bob voted too, and voted on both answers; eve asked r2. All of it was trained on."""
    monkeypatch.setenv("BCO_USER_SALT", SALT.decode())
    storage = tmp_path / "runs"
    log = FeedbackLog.open(storage)
    for answer, asker in (("r1", "ann"), ("r2", "eve")):
        asked = [{"role": "user", "content": f"{asker} asks"}]
        log.add_completion(Completion(answer, 1.0, "m/1", "fp", asked, [1], [Choice("ok", [2], "stop")], {}, asker))
    votes = [(voter, log.add_vote(Vote(response_id=answer, label=True, user=voter))[0].id)
             for answer, voter in (("r1", "ann"), ("r1", "bob"), ("r2", "ann"), ("r2", "bob"))]  # fmt: skip
    export(log, storage / "feedback")
    log.close()
    rows = [row(number, voter, vote_id) for number, (voter, vote_id) in enumerate(votes)]
    write_records(storage / "records" / "d1", [*rows, row(4, "carl")])
    write_scored(storage / "scored" / "s1", [*rows, row(4, "carl")])
    write_records(storage / "records" / "d2", [row(1, "carl")])
    write_scored(storage / "scored" / "s2", [row(1, "carl")])
    shutil.rmtree(storage / "records" / "d2" / "quarantine")
    shutil.rmtree(storage / "scored" / "s2" / "quarantine")
    (tmp_path / "model").mkdir()
    registry = Registry(storage)
    for run, parent, scored in (("a", "/base", "s1"), ("b", "helper/1", "s2"), ("c", "/base", "s2")):
        registry.register("helper", tmp_path / "model", {"run": run, "parent": parent, "scored": scored})
    registry.promote("helper", 2, expected=None)
    return storage


def erase(storage: Path, *users: str, ids: tuple[str, ...] = ()) -> dict[str, Any]:
    return erase_votes(storage, users=list(users), ids=list(ids), phases=Phases(quiet=True))


def check_ann_is_gone(storage: Path) -> None:
    """And everything else is as it was, and fits its manifest."""
    verify_segments(storage / "feedback", load_manifest(storage / "feedback"))
    (segment,) = load_manifest(storage / "feedback").segments
    left = pq.read_table(storage / "feedback" / segment.file)["user"].to_pylist()
    assert left == [hash_user("bob", SALT)]
    for kind in ("records", "scored"):
        for directory in (storage / kind).iterdir():
            listed = json.loads((directory / files.MANIFEST).read_text())["files"]
            assert all(files.sha256(directory / name) == fact["sha256"] for name, fact in listed.items()
                       if (directory / name).exists())  # fmt: skip
    records = load_records(storage / "records" / "d1")
    assert (records.read, records.kept, records.drops) == (7, 2, {"empty": 2, "erased": 3})
    assert records.statistics == LogSums.of(pq.read_table(storage / "records/d1/part-00000.parquet")).state_dict()
    scored = pq.read_table(storage / "scored" / "s1" / "part-00000.parquet")
    assert [row["id"] is None for row in scored.to_pylist()] == [True, True, True, False, False]
    assert not (storage / "scored" / "s1" / "report").exists()
    assert (storage / "scored" / "s2" / "report").exists()
    pseudonym = hash_user("ann", SALT)
    kept = [path for path in storage.rglob("*") if path.is_file() and path.name != erasures.LEDGER]
    assert not [path for path in kept if pseudonym.encode() in path.read_bytes()]
    assert not [path for path in kept if b"ann asks" in path.read_bytes() and "s2" not in path.parts]
    raws = [refused["raw"] for refused in Quarantine(storage / "records/d1/quarantine/import").examples(9)]
    assert raws == [b"", b'{"user": "joanna", "text": "hers"}']


def test_a_person_is_erased_everywhere(storage: Path) -> None:
    on_r1 = {event.id for event in FeedbackLog.open(storage).list_votes(response_id="r1")[0]}
    found = erase(storage, "ann")
    assert {name: found[name] for name in found if isinstance(found[name], int)} == {
        "votes_in_log": 3, "rows_in_segments": 3, "rows_in_records": 3, "rows_in_scored": 3, "completions": 1,
        "evaluations": 0,
    }  # fmt: skip
    assert found["models"] == [
        {"model": "helper/1", "scored": "s1", "rows": 3, "aliases": [], "inherits_from": None},
        {"model": "helper/2", "scored": "s2", "rows": 0, "aliases": ["prod"], "inherits_from": "helper/1"},
    ]
    assert "bco run" in found["note"]
    assert found["skipped"] == []
    assert erased_names(storage) == {hash_user("ann", SALT), *on_r1}
    check_ann_is_gone(storage)


def test_again_it_changes_nothing_and_names_the_same_models(storage: Path) -> None:
    first = erase(storage, "ann")
    before = {path: path.stat().st_mtime_ns for path in storage.rglob("*.parquet")}
    again = erase(storage, "ann")
    assert {path: path.stat().st_mtime_ns for path in storage.rglob("*.parquet")} == before
    assert [value for value in again.values() if isinstance(value, int)] == [0] * 6
    assert again["models"] == first["models"]
    assert "Nothing was found that was not erased before" in again["note"]
    check_ann_is_gone(storage)


def test_a_pseudonym_or_an_id_will_do(storage: Path) -> None:
    by_id = erase(storage, ids=(FeedbackLog.open(storage).list_votes()[0][3].id,))
    assert (by_id["votes_in_log"], by_id["completions"], by_id["rows_in_scored"]) == (1, 0, 1)
    assert erase(storage, hash_user("ann", SALT))["votes_in_log"] == 3
    assert erase(storage, "ann")["votes_in_log"] == 0


def test_somebody_unknown_costs_nothing(storage: Path) -> None:
    found = erase(storage, "zoe")
    assert (found["models"], found["rows_in_records"]) == ([], 0)
    assert erased_names(storage) == {hash_user("zoe", SALT)}
    files.verify_directory(storage / "records" / "d1")
    files.verify_directory(storage / "scored" / "s1")


def kill_after(writes: int) -> Callable[[Path, bytes], None]:
    real, left = files.write_bytes, writes

    def write(path: Path, data: bytes) -> None:
        nonlocal left
        left -= 1
        if left < 0:
            raise KilledError
        real(path, data)

    return write


def test_killed_after_any_write(storage: Path, tmp_path: Path) -> None:
    """The next erasure, even of somebody else, brings it to its end."""
    for writes in range(100):
        copy = tmp_path / f"copy{writes}"
        shutil.copytree(storage, copy)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(files, "write_bytes", kill_after(writes))
            try:
                erase(copy, "ann")
            except KilledError:
                pass
            else:
                break
        if writes:  # the first write is the ledger: before it nothing has happened
            assert hash_user("ann", SALT) in erased_names(copy)
            models = erase(copy, "zoe")["models"]
            assert [model["model"] for model in models] == ["helper/1", "helper/2"]
            check_ann_is_gone(copy)
    assert 10 < writes < 99


def test_half_done_directories_go_unless_somebody_is_at_them(storage: Path) -> None:
    for name in ("records/half", "scored/half", "scored/busy"):
        (storage / name / "reference").mkdir(parents=True)
        (storage / name / "reference" / "part-0.parquet").write_bytes(b"ann")
    with files.locked(storage / "scored" / "busy" / ".lock"):
        found = erase(storage, "ann")
    assert [path.name for path in (storage / "records" / "half").iterdir()] == [".lock"]
    assert [path.name for path in (storage / "scored" / "half").iterdir()] == [".lock"]
    assert (storage / "scored" / "busy" / "reference").exists()
    assert found["skipped"] == ["scored/busy is being written; erase again when that has ended"]
    assert "scored/busy" in found["note"]


def test_shards_of_an_older_version_are_pointed_out(storage: Path) -> None:
    shard = storage / "scored" / "s2" / "part-00000.parquet"
    pq.write_table(pq.read_table(shard).drop_columns(["user"]), shard)
    assert ["older version" in skipped for skipped in erase(storage, "ann")["skipped"]] == [True]


def test_reading_the_old_log_again_drops_them(storage: Path) -> None:
    votes = [row(number, voter) for number, voter in enumerate(("ann", "bob", "carl"))]
    votes = [{**vote, "response_id": None, "conversation_id": None} for vote in votes]
    for vote in votes:
        vote |= {name: vote.get(name) for name in SETTLED.names}
    erase(storage, "ann", ids=("v1",))
    kept, dropped = settle(votes, Rules(erased=erased_names(storage)), {})
    assert [vote["id"] for vote in kept] == ["v2"]
    assert [verdict.reason for _, verdict in dropped] == ["erased", "erased"]


@pytest.mark.parametrize("names", [(), ("",)])
def test_somebody_must_be_named(storage: Path, names: tuple[str, ...]) -> None:
    with pytest.raises(SpecError, match="--user"):
        erase(storage, *names)


def test_a_storage_that_is_not_there_is_not_made(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="no such directory"):
        erase(tmp_path / "nowhere", "ann")
    assert not (tmp_path / "nowhere").exists()


def test_a_storage_without_a_server_gets_no_database(tmp_path: Path) -> None:
    assert erase(tmp_path, "ann")["votes_in_log"] == 0
    assert {path.name for path in tmp_path.iterdir()} <= {
        "erasures.jsonl", ".erasures.lock", ".erase.lock", "user-salt", ".user-salt.lock"
    }  # fmt: skip
    assert hash_user("ann", user_salt(tmp_path)) in erased_names(tmp_path)


@pytest.mark.parametrize(
    ("text", "known", "said"),
    [
        (b'{"user": "ann"}', True, True),
        (b'{"user": "ann"', True, True),
        (b'{"text": "as ann said"}', False, True),
        (b'{"text": "a \\"quote\\", and\\nann"}', False, True),
        (b'{"text": "and\\u2019ann"}', False, True),
        (b'{"user": "joann", "x": "annie"}', False, False),
        (b'{"user": "Zo\\u00eb"}', True, True),
        ('{"user": "Zoë"}'.encode(), True, True),
        (b'{"user": 7}', True, True),
        (b'{"user": "7"}', True, True),
        (b'{"user": 17, "weight": 0.5}', False, False),
        (b'{"id": "v1"}', True, True),
        (b"\xff\xfe \\u12 torn", False, False),
        (b"", False, False),
    ],
)
def test_what_mentions_a_name(text: bytes, known: bool, said: bool) -> None:
    """`known` from the ledger, which has pseudonyms only; `said` on the command line."""
    users = ("ann", "Zoë", "7")
    names = frozenset({*(hash_user(user, SALT) for user in users), "v1"})
    assert Erased(names, SALT).mentioned(text) is known
    assert Erased(names, SALT, (*users, "v1")).mentioned(text) is said


def test_rows_are_found_by_id_or_user_and_null_is_nobody() -> None:
    erased = Erased(frozenset({hash_user("ann", SALT), "v1"}), SALT)
    table = pa.table({"id": ["v0", "v1", "v2", None], "user": ["ann", None, hash_user("ann", SALT), None]})
    assert erased.rows(table).to_pylist() == [True, True, True, False]
    assert pc.sum(erased.rows(table.slice(0, 0))).as_py() is None
    assert erasing.LONGEST_NAME > 256  # a voter's name in the log may be that long
