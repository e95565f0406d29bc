"""What an entry of `data.feedback` means of the server's own log, now and tomorrow."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from bco_ray.config import DataSpec, dump_spec, parse_spec
from bco_ray.errors import SpecError
from bco_ray.pipeline.log import resolve_log
from bco_ray.pipeline.own_log import last_round, own_log
from bco_ray.storage import files
from bco_ray.storage.feedback_log import Choice, Completion, FeedbackLog, Vote
from bco_ray.storage.registry import Registry
from bco_ray.testing.tiny import write_tiny_model


def vote(storage: Path, *users: str) -> None:
    """The same answer, voted on by each."""
    log = FeedbackLog.open(storage)
    prompt = [{"role": "user", "content": "q"}]
    for user in users:
        log.add_completion(Completion(user, 1.0, "bot/1", "fp", prompt, [1], [Choice("a", [2], "stop")], {}))
        log.add_vote(Vote(response_id=user, label=True, user=user))


def trained(storage: Path, on: str, made: Path, parent: str = "/models/base") -> str:
    lineage = {"run": f"{parent} {on}", "parent": parent, "feedback": [on, "/votes.jsonl"]}
    return Registry(storage).register("bot", made, lineage).reference


def test_a_round_goes_on_where_its_base_ended(tmp_path: Path) -> None:
    made = write_tiny_model(tmp_path / "made")
    vote(tmp_path, "ann", "bob")
    assert own_log(tmp_path, "feedback:", "/models/base").entry == "feedback:1"
    first = trained(tmp_path, "feedback:1", made)
    vote(tmp_path, "cyd")
    second = own_log(tmp_path, "feedback:", first)
    assert (second.entry, [Path(path).name for path in second.segments]) == ("feedback:1..2", ["part-3-3.parquet"])
    assert own_log(tmp_path, "feedback", first).entry == "feedback:2"
    assert own_log(tmp_path, "feedback:", "/models/base").entry == "feedback:2"
    last = trained(tmp_path, second.entry, made, first)
    assert last_round(tmp_path, last) == 2
    with pytest.raises(SpecError, match="no votes since manifest 2, up to which bot/2 has learned"):
        own_log(tmp_path, "feedback:", last)


def test_the_votes_of_a_version_that_was_not_promoted_are_learned_from_by_the_next(tmp_path: Path) -> None:
    made = write_tiny_model(tmp_path / "made")
    vote(tmp_path, "ann", "bob")
    live = trained(tmp_path, own_log(tmp_path, "feedback:", "/models/base").entry, made)
    vote(tmp_path, "cyd")
    refused = trained(tmp_path, own_log(tmp_path, "feedback:", live).entry, made, live)
    vote(tmp_path, "dan")
    assert own_log(tmp_path, "feedback:", live).entry == "feedback:1..3"
    assert own_log(tmp_path, "feedback:", refused).entry == "feedback:2..3"


def test_a_version_learned_what_those_did_that_it_descends_from(tmp_path: Path) -> None:
    made, registry = write_tiny_model(tmp_path / "made"), Registry(tmp_path)
    vote(tmp_path, "ann")
    first = trained(tmp_path, own_log(tmp_path, "feedback:", "").entry, made)
    other = registry.register("other", made, {"run": "r", "parent": first, "feedback": ["/a.jsonl"]})
    assert last_round(tmp_path, other.reference) == last_round(tmp_path, str(other.directory.resolve())) == 1
    assert last_round(tmp_path, "other/9") is None
    shutil.copytree(other.directory, tmp_path / "export")
    assert last_round(tmp_path, str(tmp_path / "export")) == 1
    run = tmp_path / "runs" / "again"
    files.write_bytes(run / "spec.resolved.yaml", dump_spec(parse_spec(
        {"name": "bot", "model": {"base": other.reference}, "data": {"feedback": "/b.jsonl"}}, where="test"
    )).encode())  # fmt: skip
    assert last_round(tmp_path, str(run / "model")) == 1


def test_older_votes_are_what_the_rounds_before_had(tmp_path: Path) -> None:
    made = write_tiny_model(tmp_path / "made")
    asked = DataSpec(feedback=["feedback:"])
    vote(tmp_path, "ann", "bob")
    first = resolve_log(asked, tmp_path, "/models/base", older=True)
    assert (first.data.feedback, len(first.sources), first.older) == (["feedback:1"], 1, frozenset())
    trained(tmp_path, "feedback:1", made)
    vote(tmp_path, "cyd")
    second = resolve_log(asked, tmp_path, "bot/1", older=True)
    assert second.data.feedback == ["feedback:1..2"]
    assert [Path(source.path).name for source in second.sources] == ["part-1-2.parquet", "part-3-3.parquet"]
    assert {Path(path).name for path in second.older} == {"part-1-2.parquet"}
    assert resolve_log(second.data, tmp_path, "/models/base", older=True) == second
    alone = resolve_log(asked, tmp_path, "bot/1")
    assert alone.older == frozenset()
    assert second.without_older().directory == alone.directory != second.directory
    (tmp_path / "a.jsonl").write_text('{"prompt": "q", "completion": "a", "label": true}\n')
    with pytest.raises(SpecError, match="rounds.older: older votes are those of the server's own log"):
        resolve_log(DataSpec(feedback=[str(tmp_path / "a.jsonl")]), tmp_path, "bot", older=True)


def test_what_was_pinned_stays_what_it_was(tmp_path: Path) -> None:
    made = write_tiny_model(tmp_path / "made")
    vote(tmp_path, "ann")
    first = resolve_log(DataSpec(feedback=["feedback:"]), tmp_path, "/models/base")
    learned = trained(tmp_path, "feedback:1", made)
    vote(tmp_path, "bob")
    assert resolve_log(first.data, tmp_path, learned).directory == first.directory
    assert resolve_log(DataSpec(feedback=["feedback"]), tmp_path, learned).directory != first.directory


@pytest.mark.parametrize(
    ("entry", "says"),
    [
        ("feedback:x", "write feedback"),
        ("feedback:1..", "write feedback"),
        ("feedback:9", "feedback:9: .* no feedback manifest 9"),
        ("feedback", "no votes yet"),
    ],
)
def test_what_is_not_there_is_said(tmp_path: Path, entry: str, says: str) -> None:
    with pytest.raises(SpecError, match=says):
        own_log(tmp_path, entry, "/models/base")
