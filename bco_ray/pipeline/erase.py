"""`bco data erase`: a person, or single votes, out of everything the storage directory holds.

The ledger is written first; the rest is a sweep of everything the ledger names, which may be killed and done again.
Derived numbers that name nobody (weights, embeddings by hash, classifier states, metrics) stay.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from bco_ray.errors import SpecError, StorageError
from bco_ray.feedback.statistics import LogSums
from bco_ray.storage import erasures, files, log_erasure, parquet
from bco_ray.storage.database import DATABASE
from bco_ray.storage.evaluations import ANSWERS
from bco_ray.storage.export import erase_segments
from bco_ray.storage.feedback_log import FeedbackLog
from bco_ray.storage.log_erasure import LogErasure
from bco_ray.storage.objects import ObjectPath
from bco_ray.storage.quarantine import blank_mentions
from bco_ray.storage.records import erase_records
from bco_ray.storage.registry import ModelVersion, Registry
from bco_ray.storage.salt import SALT_FILE, SALT_VARIABLE, hash_user, user_salt
from bco_ray.storage.scored import tombstone
from bco_ray.telemetry import Phases

LONGEST_NAME = 1024
"""Text longer than this in a refused row is no name."""

_LEAF = re.compile(rb'"((?:[^"\\]|\\.)*)"|(?<![\w.])(-?\d+)(?![\w.])', re.DOTALL)
_PSEUDONYM = re.compile(rb"u-[0-9a-f]{24}")
_BEFORE, _AFTER = r"(?:(?<![0-9A-Za-z_])|(?<=\\[nrtbf])|(?<=\\u[0-9a-fA-F]{4}))", r"(?![0-9A-Za-z_])"


@dataclass(frozen=True)
class Erased:
    """Whom to forget: `names` are the ledger's (pseudonyms, vote ids); `said` are the names as they were given now."""

    names: frozenset[str]
    salt: bytes = field(repr=False)
    said: tuple[str, ...] = ()

    def person(self, user: str) -> bool:
        """Of a name or a pseudonym."""
        return hash_user(user, self.salt) in self.names

    def rows(self, table: pa.Table) -> pa.Array:
        """Which rows are theirs, by `id` or `user`."""
        people = [user for user in pc.unique(table["user"]).to_pylist() if user and self.person(user)]
        by_user = pc.is_in(table["user"], pa.array(people, pa.string()))
        by_id = pc.is_in(table["id"], pa.array(sorted(self.names), pa.string()))
        return pc.or_(by_user, by_id).combine_chunks()

    def mentioned(self, text: bytes) -> bool:
        """Whether some value in JSON is one of the names, or one said now is a word of the text, however broken."""
        if self._words and self._words.search(text):
            return True
        if any(found.decode() in self.names for found in _PSEUDONYM.findall(text)):
            return True
        return any(leaf in self.names or self.person(leaf) for leaf in _leaves(text))

    @cached_property
    def _words(self) -> re.Pattern[bytes] | None:
        """Either as it is or as JSON escapes it."""
        spellings = {s for name in self.said for s in (name, json.dumps(name)[1:-1])}
        words = "|".join(map(re.escape, sorted(spellings)))
        return re.compile(f"{_BEFORE}(?:{words}){_AFTER}".encode()) if words else None


NOBODY = (
    " Nothing was found that was not erased before: names are looked up as your product spells them, and pseudonyms "
    "with this storage's salt "
    f"(${SALT_VARIABLE}, else its file {SALT_FILE})."
)


def erase_votes(
    storage: Path, *, users: Sequence[str], ids: Sequence[str], phases: Phases, state: Path | None = None
) -> dict[str, Any]:
    """What was removed, and the model versions that have seen it. Doing it again changes nothing more.

    `state`: the server's own directory, if its log is not in `storage`.

    Raises SpecError if nobody is named, StorageError if something in the way is damaged or in use.
    """
    if not [*users, *ids] or not all([*users, *ids]):
        raise SpecError("bco data erase: name a person (--user NAME) or a vote (--id ID).")
    if not storage.is_dir():
        raise SpecError(f"--storage: {storage}: no such directory.")
    if state is None and isinstance(storage, ObjectPath):
        raise SpecError(f"--state: name the server's own directory, whose log has the votes too; {storage} has none.")
    if state is not None and not (state / DATABASE).is_file():
        raise SpecError(f"--state: {state}: it has no {DATABASE}; name the directory the server was started with.")
    with phases.phase("erase") as advance, files.locked(storage / ".erase.lock"):
        salt = user_salt(storage)
        pseudonyms = [hash_user(user, salt) for user in users]
        erasures.remember_erasure(storage, [*pseudonyms, *ids])
        erased = Erased(erasures.erased_names(storage), salt, (*users, *pseudonyms, *ids))
        log = _erase_in_log(state or storage, storage, erased)
        erased = replace(erased, names=erasures.erased_names(storage))  # with the votes on what they asked
        segments = erase_segments(storage / "feedback", erased.rows)
        sweep = _Sweep(erased)
        directories = [*_directories(storage / "records"), *_directories(storage / "scored")]
        for done, directory in enumerate(directories):
            advance(done, len(directories), f"{directory.parent.name}/{directory.name}")
            sweep.directory(directory)
        evaluations = _forget_answers(Registry(storage), erased)
        advance(1, 1, f"{log.votes} votes in the log")
    models = _models_trained_on(Registry(storage), sweep.hit)
    return {
        "votes_in_log": log.votes,
        "rows_in_segments": segments,
        "rows_in_records": sweep.records,
        "rows_in_scored": sweep.scored,
        "completions": log.completions,
        "evaluations": evaluations,
        "models": models,
        "skipped": sweep.skipped,
        "note": _note(models, sweep.skipped) + ("" if log.votes + segments + sweep.records + sweep.scored else NOBODY),
    }


def _erase_in_log(state: Path, storage: Path, erased: Erased) -> LogErasure:
    if not (state / DATABASE).is_file():
        return LogErasure(votes=0, completions=0)
    with contextlib.closing(FeedbackLog.open(state)) as log:
        found = log_erasure.erase(log, erased.person, erased.names, lambda ids: erasures.remember_erasure(storage, ids))
        log_erasure.forget_deleted(log)
    return found


@dataclass
class _Sweep:
    """Goes through directories; `hit` are rows by scored directory, of this and all earlier erasures."""

    erased: Erased
    records: int = 0
    scored: int = 0
    hit: dict[str, int] = field(default_factory=dict)
    skipped: list[str] = field(default_factory=list)

    def directory(self, directory: Path) -> None:
        """One directory of settled records or of scored shards; half-done ones are removed."""
        if not files.is_committed(directory) and not self._cleared(directory):
            self._skip(directory, "is being written; erase again when that has ended")
        elif not files.is_committed(directory):
            return
        elif any("user" not in parquet.read_schema(part).names for part in _parts(directory)):
            self._skip(directory, "was written by an older version, which did not keep who voted; delete it")
        elif directory.parent.name == "records":
            self.records += erase_records(directory, self.erased.rows, self.erased.mentioned, _statistics)
        else:
            self.scored += erase_scored(directory, self.erased)
            if rows := sum(_tombstones(shard) for shard in _parts(directory)):
                self.hit[directory.name] = rows

    def _skip(self, directory: Path, why: str) -> None:
        self.skipped.append(f"{directory.parent.name}/{directory.name} {why}")

    def _cleared(self, directory: Path) -> bool:
        """Nobody finds a half-done directory again: its address depends on who is erased."""
        try:
            with files.locked(directory / ".lock", busy="in use"):
                if not files.is_committed(directory):
                    files.clear_directory(directory)
        except StorageError:
            return False
        return True


def erase_scored(directory: Path, erased: Erased) -> int:
    """Blank the rows of a committed directory of scored shards in their place, its refused rows, and its report."""
    amendment = erasures.Amendment(directory)
    files.remove_scraps(directory)
    blank_mentions(directory, erased.mentioned, amendment.begin)
    if any(erasures.matching_rows(shard, erased.rows) for shard in _parts(directory)):
        amendment.begin()
    report = directory / "report" / "report.json"  # it shows prompts and refused rows, also the records' own
    if amendment.pending or (report.is_file() and erased.mentioned(report.read_bytes())):
        with contextlib.suppress(FileNotFoundError):
            files.remove_tree(directory / "report")  # `bco data report` makes it again
    if not amendment.pending:
        return 0
    rows = tombstone(directory, erased.rows)
    erasures.renew_manifest(directory, {})
    amendment.finish()
    return rows


def _forget_answers(registry: Registry, erased: Erased) -> int:
    """Answers to somebody's prompts, and the page that shows them, of how many evaluations."""
    forgotten = 0
    for name in registry.names():
        evaluations = registry.evaluations(name)
        for version in registry.versions(name):
            for number in evaluations.numbers(version):
                answers = evaluations.place(version, number) / ANSWERS
                if answers.is_file() and erased.mentioned(answers.read_bytes()):
                    evaluations.forget_words(version, number)
                    forgotten += 1
    return forgotten


def _parts(directory: Path) -> list[Path]:
    return sorted(directory.glob("part-*.parquet"))


def _tombstones(shard: Path) -> int:
    """Rows without an id: only erased ones have none, so the shards themselves remember how many there were."""
    return int(parquet.read_table(shard, columns=["id"])["id"].null_count)


def _directories(root: Path) -> list[Path]:
    return sorted(d for d in root.iterdir() if d.is_dir()) if root.is_dir() else []


def _statistics(buckets: Iterable[pa.Table]) -> dict[str, Any]:
    """They name the people with most votes, so they are counted anew."""
    sums = LogSums()
    for rows in buckets:
        sums = sums.merge(LogSums.of(rows))
    return sums.state_dict()


def _models_trained_on(registry: Registry, hit: dict[str, int]) -> list[dict[str, Any]]:
    """Versions trained on rows that are erased now, and those that were trained further from one of them."""
    versions = [registry.get(name, version) for name in registry.names() for version in registry.versions(name)]
    tainted = {v.reference: v for v in versions if v.lineage.get("scored") in hit}
    while heirs := [v for v in versions if v.reference not in tainted and _ancestor(v, tainted.values())]:
        tainted |= {v.reference: v for v in heirs}
    return [
        {
            "model": version.reference,
            "scored": version.lineage.get("scored"),
            "rows": hit.get(version.lineage.get("scored", ""), 0),
            "aliases": sorted(a for a, v in registry.aliases(version.name).items() if v == version.version),
            "inherits_from": _ancestor(version, tainted.values()),
        }
        for version in versions
        if version.reference in tainted
    ]


def _ancestor(version: ModelVersion, tainted: Iterable[ModelVersion]) -> str | None:
    """The one of `tainted` that a version was trained from; lineage names it, or its directory."""
    parent = version.lineage.get("parent")
    return next((t.reference for t in tainted if parent in (t.reference, str(t.directory.resolve()))), None)


def _note(models: Sequence[dict[str, Any]], skipped: Sequence[str]) -> str:
    parts = ["These votes are left out of every later reading of a log; logs outside the storage are yours to clean."]
    if models:
        parts.append(
            "The models listed were trained on them and still contain what they learned: train again with `bco run` "
            "(the new run leaves the rows out) and move the aliases with `bco models promote`, or retire them."
        )
    if skipped:
        parts.append(f"Not looked at: {'; '.join(skipped)}.")
    return " ".join(parts)


def _leaves(text: bytes) -> Iterator[str]:
    """Strings and whole numbers of some JSON, also of one cut short; text that is JSON itself is looked into."""
    for match in _LEAF.finditer(text):
        quoted, number = match.groups()
        if number is not None:
            yield number.decode()
        elif len(quoted) <= LONGEST_NAME:
            with contextlib.suppress(ValueError):
                yield str(json.loads(b'"' + quoted + b'"'))
