"""A spec's `data` section as something that can be read: files pinned, each with its importer, and the rules."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path

from bco_ray.config import DataSpec
from bco_ray.config.spec import DEFAULT_LABEL_MAP, FieldMap
from bco_ray.errors import SpecError, StorageError
from bco_ray.feedback.formats.registry import by_name, detect, mapped
from bco_ray.feedback.importing import ImportStage
from bco_ray.feedback.lines import first_rows
from bco_ray.feedback.records import RecordsJob, bits_for, read_records
from bco_ray.feedback.settling import Rules, SettleStage
from bco_ray.feedback.sources import SourceFile, expand
from bco_ray.pipeline.own_log import is_own, own_log
from bco_ray.storage import files
from bco_ray.storage.erasures import erased_names
from bco_ray.storage.quarantine import Quarantine
from bco_ray.storage.records import RecordsManifest, load_records
from bco_ray.storage.salt import user_salt
from bco_ray.telemetry import Phases

RECORDS_FORMAT = 1
"""Part of every records directory's address: raised when the same files would settle into other votes."""


@dataclass(frozen=True)
class ResolvedLog:
    """Which files, read how, settled by which rules; `data` says the same in a spec's words, but for `older`: those of
    the files that are read to mix in some of their votes.
    """

    data: DataSpec
    storage: Path
    sources: tuple[SourceFile, ...]
    erased: frozenset[str]
    salt: bytes = field(repr=False)
    older: frozenset[str] = frozenset()

    @cached_property
    def identity(self) -> dict[str, object]:
        """Everything that the settled records depend on."""
        return {
            "format": RECORDS_FORMAT,
            "sources": [source.identity() for source in self.sources],
            "data": self.data.model_dump(exclude={"feedback", "validation", "format"}),
            "map": self.data.format.map if isinstance(self.data.format, FieldMap) else None,
            "erased": files.digest(sorted(self.erased)),
            "salt": files.digest(self.salt.hex()),
        }

    @cached_property
    def directory(self) -> Path:
        """Content-addressed: the same files under the same rules are read once."""
        return self.storage / "records" / files.digest(self.identity)

    def without_older(self) -> ResolvedLog:
        """What came in the round itself."""
        sources = tuple(source for source in self.sources if source.path not in self.older)
        return replace(self, sources=sources, older=frozenset())

    def job(self) -> RecordsJob:
        """What `feedback` needs to know to read it."""
        field_map = self.data.format.map if isinstance(self.data.format, FieldMap) else None
        books = self.directory / "quarantine"
        formats = {source.path: source.format for source in self.sources}
        importing = ImportStage(
            books=Quarantine(books / "import"),
            formats=formats,
            field_map=field_map,
            label_map=None if self.data.label_map == "auto" else self.data.label_map,
            common_labels=DEFAULT_LABEL_MAP,
            bits=bits_for(self.sources),
            salt=self.salt,
            score=self.data.score,
            erased=self.erased,
        )
        rules = Rules(self.data.conflicts, self.data.duplicates, self.erased)
        order = {source.path: number for number, source in enumerate(self.sources)}
        return RecordsJob(
            directory=self.directory,
            inputs=self.identity,
            sources=self.sources,
            importing=importing,
            settle=SettleStage(Quarantine(books / "settle"), rules, order),
            joins=field_map is None and any(by_name(name).joins for name in set(formats.values())),
            max_votes_per_user=self.data.max_votes_per_user,
        )


def resolve_log(
    data: DataSpec, storage: Path, base: str = "", *, demonstrations: bool = False, older: bool = False
) -> ResolvedLog:
    """Pin what the entries mean now; `base`: the exact version from whose last round `feedback:` goes on.

    `demonstrations`: conversations without a label are examples to learn from, not a mistake. `older`: what the
    server's log had before `feedback:` is read too. Raises SpecError or DataError naming the entry.
    """
    own = [own_log(storage, entry, base) for entry in data.feedback if is_own(entry)]
    if older and not own:
        raise SpecError(
            "rounds.older: older votes are those of the server's own log, and data.feedback does not name it. Write "
            "data.feedback: 'feedback:', or leave rounds.older 0."
        )
    segments = [path for log in own for path in log.segments]
    before = {path for log in own for path in log.older_segments} - set(segments) if older else set()
    segments += sorted(before)
    others = [s for s in expand([e for e in data.feedback if not is_own(e)]) if s.path not in segments]
    sources = [replace(s, format="canonical") for s in expand(segments)] + with_formats(
        others, data.format, demonstrations
    )
    pinned = [log.entry for log in own] + [source.path for source in others]
    data = data.model_copy(update={"feedback": list(dict.fromkeys(pinned))})
    return ResolvedLog(data, storage, tuple(sources), erased_names(storage), user_salt(storage), frozenset(before))


def read_log(log: ResolvedLog, phases: Phases) -> RecordsManifest:
    """The settled records of a log, made if they are not there."""
    with phases.phase("read") as advance:
        if files.is_committed(log.directory):
            advance(1, 1, "was done already")
            return load_records(log.directory)
        records = read_records(log.job(), advance)
    require_nobody_erased_since(log)
    return records


def require_nobody_erased_since(log: ResolvedLog) -> None:
    """Raises StorageError, and takes back what was just read, if somebody was erased while it was."""
    if erased_names(log.storage) != log.erased:
        (log.directory / files.MANIFEST).unlink(missing_ok=True)
        raise StorageError(f"{log.directory}: votes were erased while the log was read. Run it again.")


def with_formats(
    sources: Sequence[SourceFile], wanted: str | FieldMap, demonstrations: bool = False
) -> list[SourceFile]:
    """Each file with its importer's name: the one asked for, or what its first rows look like."""
    if isinstance(wanted, FieldMap):
        mapped(wanted.map)  # a wrong map is better refused now
        return [replace(source, format="map") for source in sources]
    if wanted != "auto":
        return [replace(source, format=by_name(wanted).name) for source in sources]
    with ThreadPoolExecutor(16) as pool:
        return list(pool.map(partial(_detected, demonstrations), sources))


def _detected(demonstrations: bool, source: SourceFile) -> SourceFile:
    rows = first_rows(source)
    found = detect(rows, where=source.path, demonstrations=demonstrations).name if rows else "canonical"
    return replace(source, format=found)
