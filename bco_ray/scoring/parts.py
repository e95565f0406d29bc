"""A part on its way through scoring: where its files are, what of it is cached, when it counts as finished.

In `<scored>/reference/`, for each part of the records: `tokens/part-*.parquet` (KEYED) until the reference pass has
seen it, then `part-*.parquet` (REFERENCE), `prompts-*.parquet` (PROMPTS) and, last, `part-*.json`, which makes them
count.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from pydantic import BaseModel, ConfigDict, ValidationError

from bco_ray.errors import StorageError
from bco_ray.schema import REFERENCE
from bco_ray.scoring.cache import ContentCache, Span, Values
from bco_ray.scoring.mixing import Mixture
from bco_ray.scoring.shards import distinct_prompts, prompts_name, shard_facts, write_table
from bco_ray.scoring.tokens import KEYED, Tokenizing
from bco_ray.storage import files, parquet
from bco_ray.storage.quarantine import Quarantine
from bco_ray.storage.scored import ShardFacts


class PartDone(BaseModel):
    """The mark of a finished part: of which job, with which files (name -> bytes), what is in it."""

    model_config = ConfigDict(extra="forbid")

    job: str
    files: dict[str, int]
    facts: ShardFacts
    computed_rows: int
    cached_rows: int


@dataclass(frozen=True)
class Workplace:
    """The directories of one scoring run; `job` is the digest of all that its results depend on."""

    directory: Path
    job: str

    @property
    def reference(self) -> Path:
        """Goes when the run is done."""
        return self.directory / "reference"

    def tokens(self, part: str) -> Path:
        """What the reference pass has still to see."""
        return self.reference / "tokens" / part

    @property
    def tokenized(self) -> Quarantine:
        """The books of tokenizing."""
        return Quarantine(self.directory / "quarantine" / "tokenize")

    @property
    def referred(self) -> Quarantine:
        """The books of the reference pass."""
        return Quarantine(self.directory / "quarantine" / "reference")

    def done(self, part: str) -> PartDone | None:
        """Its mark, if it is one of this job and the files it speaks of are there."""
        try:
            mark = PartDone.model_validate(files.read_json(self._mark(part)))
        except (StorageError, ValidationError):
            return None
        there = all(_size(self.reference / name) == size for name, size in mark.files.items())
        return mark if there and mark.job == self.job else None

    def finish(self, part: str, tokens: pa.Table, known: Known, computed: int) -> None:
        """Write the part's REFERENCE and PROMPTS, its books and its mark. All rows and prompts must be known.

        A row whose numbers are not finite would spoil every step it is in; it is refused.
        """
        rows, embedding_PD = self._judged(part, tokens, known)
        names = [part, prompts_name(part)]
        write_table(self.reference / names[0], rows)
        write_table(self.reference / names[1], distinct_prompts(rows, embedding_PD))
        mark = PartDone(
            job=self.job,
            files={name: (self.reference / name).stat().st_size for name in names},
            facts=shard_facts(part, rows),
            computed_rows=computed,
            cached_rows=tokens.num_rows - computed,
        )
        files.write_json(self._mark(part), mark.model_dump())
        self.tokens(part).unlink(missing_ok=True)

    def _judged(self, part: str, tokens: pa.Table, known: Known) -> tuple[pa.Table, np.ndarray]:
        """The usable rows (REFERENCE) and the embeddings of their distinct prompts, by hash."""
        prompt_N = tokens["prompt_key"].to_pylist()
        logp_N = np.array([known.logps[key][0] for key in tokens["row_key"].to_pylist()], np.float32)
        finite = {key: bool(np.isfinite(value).all()) for key, value in known.embeddings.items()}
        usable_N = np.isfinite(logp_N) & np.array([finite[key] for key in prompt_N], np.bool_)
        refused = [
            {**row, "reason": "non_finite_reference", "raw": b"",
             "detail": "the reference model's log-probability or the prompt's embedding is not finite"}
            for row in tokens.select(["file", "position"]).filter(pa.array(~usable_N)).to_pylist()
        ]  # fmt: skip
        self.referred.write((part, 0), tokens.num_rows, refused)
        rows = tokens.select(REFERENCE.names[:-1]).append_column("reference_logp", pa.array(logp_N))
        rows = rows.filter(pa.array(usable_N)).cast(REFERENCE)
        _, first_P = np.unique(rows["prompt_hash"].to_numpy(), return_index=True)
        kept = [key for key, usable in zip(prompt_N, usable_N, strict=True) if usable]
        return rows, np.array([known.embeddings[kept[n]] for n in first_P], np.float32)

    def _mark(self, part: str) -> Path:
        return (self.reference / part).with_suffix(".json")


@dataclass(frozen=True)
class Known:
    """Log-probabilities (1,) by row key and embeddings (D,) by prompt key."""

    logps: Values
    embeddings: Values

    def covers(self, tokens: pa.Table) -> bool:
        """Whether nothing is left to compute for these rows."""
        rows, prompts = keys_of(tokens)
        return rows <= self.logps.keys() and prompts <= self.embeddings.keys()

    def merge(self, other: Known) -> Known:
        """Both."""
        return Known(self.logps | other.logps, self.embeddings | other.embeddings)


@dataclass(frozen=True)
class Caches:
    """What is remembered between jobs: one directory per reference model, one per source of embeddings."""

    logps: Path
    embeddings: Path

    def find(self, tokens: pa.Table) -> Known:
        """What is known of these rows."""
        if not tokens.num_rows:
            return Known({}, {})
        span, (rows, prompts) = _span(tokens), keys_of(tokens)
        return Known(ContentCache(self.logps).find(span, rows), ContentCache(self.embeddings).find(span, prompts))

    def add(self, tokens: pa.Table, fresh: Known) -> None:
        """Remember what was computed for (some of) these rows."""
        ContentCache(self.logps).add(_span(tokens), fresh.logps)
        ContentCache(self.embeddings).add(_span(tokens), fresh.embeddings)


@dataclass(frozen=True)
class PrepareStage:
    """Tokenizes what is in the mixture of one part. If all of it is cached it is finished here, without a model; else
    its tokens are laid out.
    """

    records: Path
    tokenizing: Tokenizing
    caches: Caches
    workplace: Workplace
    mixture: Mixture = field(default_factory=Mixture)

    def __call__(self, item: dict[str, Any]) -> dict[str, Any]:
        """`item` names the part; it comes back with `pending` and the number of `rows` that were read."""
        part = item["file"]
        records = parquet.read_table(self.records / part)
        mixed, left_out = self.mixture(records)
        tokens, refused = self.tokenizing(mixed)
        self.workplace.tokenized.write((part, 0), records.num_rows, [*left_out, *refused])
        known = self.caches.find(tokens)
        if known.covers(tokens):
            self.workplace.finish(part, tokens, known, computed=0)
            return {**item, "pending": False, "rows": records.num_rows}
        write_table(self.workplace.tokens(part), tokens)
        return {**item, "pending": True, "rows": records.num_rows}


def read_tokens(path: Path) -> pa.Table:
    """KEYED rows that PrepareStage laid out."""
    try:
        return parquet.read_table(path).cast(KEYED)
    except FileNotFoundError:
        raise StorageError(f"{path}: missing: another run on the same data took it. Run it again.") from None


def keys_of(tokens: pa.Table) -> tuple[set[bytes], set[bytes]]:
    """Distinct row keys and prompt keys."""
    return set(tokens["row_key"].to_pylist()), set(tokens["prompt_key"].to_pylist())


def _span(tokens: pa.Table) -> Span:
    return Span.of(tokens["prompt_hash"].to_numpy())


def _size(path: Path) -> int | None:
    return path.stat().st_size if path.is_file() else None
