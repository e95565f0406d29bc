"""Votes from files of any importer, settled as a run would settle them but without Ray, and cut into folds.

N rows, one per vote.
"""

from __future__ import annotations

import json
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from bco_ray.config import DataSpec
from bco_ray.errors import DataError
from bco_ray.feedback.joining import JoinStage
from bco_ray.feedback.lines import blocks, ranges
from bco_ray.pipeline.log import resolve_log
from bco_ray.schema import Message
from bco_ray.text import content_text

MOST_FOLDS = 5
QUICK = 5
"""Where people are held out, one prompt of so many is enough for choices that take long."""

SALT = b"benchmarks/real_votes"
"""So that folds of people are the same on every machine."""

By = Literal["prompt", "user"]


@dataclass(frozen=True)
class Votes:
    """Settled votes. `answers` (schema.SETTLED): a row for each distinct answer, `texts` its prompt and completion."""

    answers: pa.Table
    texts: list[tuple[str, str]]
    answer_N: NDArray[np.int64]
    label_N: NDArray[np.bool_]
    prompt_N: NDArray[np.int64]
    user_N: NDArray[np.str_]
    """Empty for nobody."""
    read: int
    drops: dict[str, int]

    def __len__(self) -> int:
        return len(self.label_N)

    def groups(self, by: By) -> NDArray[np.int64]:
        """Which prompt, or which person, by number. Raises DataError if some votes name nobody."""
        if by == "user" and not self.user_N.all():
            raise DataError("--split user: some votes name no user; split by prompt instead.")
        return np.unique(self.prompt_N if by == "prompt" else self.user_N, return_inverse=True)[1]


@dataclass(frozen=True)
class Split:
    """Rows by number. All choices are made within `train`: fitted on `inner_train`, judged on `inner_valid`.

    `quick_train`, `quick_valid`: two smaller parts of `train`, for choices that take long.
    """

    train: NDArray[np.int64]
    test: NDArray[np.int64]
    inner_train: NDArray[np.int64]
    inner_valid: NDArray[np.int64]
    quick_train: NDArray[np.int64]
    quick_valid: NDArray[np.int64]


def read_votes(paths: Sequence[str]) -> Votes:
    """The votes that count in these files, each by its own importer, answers and votes joined. Raises DataError."""
    with tempfile.TemporaryDirectory() as scratch:
        job = resolve_log(DataSpec(feedback=list(paths)), Path(scratch)).job()
        importing = replace(job.importing, salt=SALT)
        votes = _through(importing, (block for part in ranges(job.sources) for block in blocks(part)))
        stages = [importing]
        if job.joins:
            stages.append(JoinStage(job.books("join"), job.bits))
            votes = _through(stages[-1], [votes])
        votes = _through(job.settle, [votes])
        tallies = [stage.books.tally() for stage in (*stages, job.settle)]
    if not votes.num_rows:
        raise DataError(f"{', '.join(paths)}: no vote in them counts.")
    drops = sum((Counter(tally.drops) for tally in tallies), Counter())
    read = tallies[0].read - sum(tally.notes.get("responses", 0) for tally in tallies)
    return _votes(votes.drop_columns(["bucket", "voter"]), read, dict(drops))


def _votes(table: pa.Table, read: int, drops: dict[str, int]) -> Votes:
    first: dict[tuple[str, str], int] = {}
    pairs = zip(table["prompt"].to_pylist(), table["completion"].to_pylist(), strict=True)
    answer_of = [first.setdefault(pair, row) for row, pair in enumerate(pairs)]
    rows, answer_N = np.unique(answer_of, return_inverse=True)
    return Votes(
        answers=table.take(pa.array(rows)),
        texts=[(_text(prompt), _text(completion)) for prompt, completion in first],
        answer_N=answer_N,
        label_N=table["label"].to_numpy(zero_copy_only=False).astype(np.bool_),
        prompt_N=table["prompt_hash"].to_numpy(),
        user_N=np.array([user or "" for user in table["user"].to_pylist()]),
        read=read,
        drops=drops,
    )


def split(votes: Votes, by: By, seed: int, seeds: Sequence[int]) -> Split:
    """Whole prompts, or whole people, are held out. Of K folds (5 at most) seeds 0 to K - 1 hold out one each.

    The quick parts are folds that none of `seeds` holds out where there are two of them, else of this seed's own.
    """
    group_N = votes.groups(by)
    count = int(group_N.max()) + 1
    folds = min(MOST_FOLDS, count)
    if folds < 3:
        raise DataError(f"--split {by}: {count} in these votes; a test, an inner and a training part need three.")
    fold_G = np.empty(count, np.int64)
    fold_G[np.random.default_rng(seed // folds).permutation(count)] = np.arange(count) % folds
    fold_N = fold_G[group_N]
    free = sorted(set(range(folds)) - {other % folds for other in seeds})
    quick = free[:2] if len(free) > 1 and max(seeds) < folds else [(seed + 1) % folds, (seed + 2) % folds]
    test, valid = fold_N == seed % folds, fold_N == (seed + 1) % folds
    some = votes.groups("prompt") % QUICK == 0 if by == "user" else np.ones(len(votes), np.bool_)
    parts = (~test, test, ~test & ~valid, valid, (fold_N == quick[0]) & some, (fold_N == quick[1]) & some)
    return Split(*(np.flatnonzero(of_N) for of_N in parts))


def _through(stage: Callable[[pa.Table], Iterator[pa.Table]], tables: Iterable[pa.Table]) -> pa.Table:
    return pa.concat_tables([out for table in tables for out in stage(table)])


def _text(messages: str) -> str:
    """Of the JSON that a row keeps its messages in."""
    return "\n".join(content_text(Message.model_validate(message)) for message in json.loads(messages))
