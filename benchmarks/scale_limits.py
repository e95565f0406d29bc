"""What the code's own constants and files come to: sums on the wire, buckets, parts, manifests, metrics."""

from __future__ import annotations

import json
import math
import sys
from dataclasses import dataclass, fields

from scale_costs import Job, cost

from bco_ray.feedback.parts import ROWS_PER_PART
from bco_ray.feedback.records import BUCKET_BYTES, LEAST_BITS, MOST_BITS
from bco_ray.objective import LossSums
from bco_ray.storage.records import PartFacts
from bco_ray.storage.scored import ShardFacts
from bco_ray.training.plan import POOL_ROWS, ShardCounts

DOUBLE = 8
SHIFT_SUMS = 4
MASK_BYTES, ID_BYTES = 1, 4
"""Of a decoded token (`storage.ragged`)."""

_PART = "part-00000-0000.parquet"


def step_sum_bytes(rows_per_step: int) -> int:
    """What a step sums over all workers beside gradients: `LossSums`, a reward per row of the window, who is to stop.

    The same for any model, log and number of workers; four of these numbers move the shift.
    tests/training/test_step_sums.py counts them.
    """
    return DOUBLE * (len(fields(LossSums)) + rows_per_step + 1)


def _listed(facts: object) -> int:
    """Bytes of a manifest per file: its facts, and its size and digest, indented as they are written."""
    entry = {_PART: {"bytes": 10**7, "sha256": "0" * 64}}
    return len(json.dumps([facts], indent=2)) + len(json.dumps(entry, indent=2))


@dataclass(frozen=True)
class Cut:
    """How a log is cut into buckets and parts, and what lists them."""

    votes: float
    buckets: int
    bucket_bytes: float
    parts: int

    @classmethod
    def of(cls, votes: float, job: Job) -> Cut:
        """As `feedback.records` does for a log of that size."""
        log = votes * job.vote_bytes
        bits = min(MOST_BITS, max(LEAST_BITS, math.ceil(math.log2(max(1.0, log / BUCKET_BYTES)))))
        return cls(votes, 2**bits, log / 2**bits, 2**bits * math.ceil(votes / 2**bits / ROWS_PER_PART))

    @property
    def settling_memory(self) -> float:
        """Bytes of Python objects of one settling task: a whole bucket."""
        return self.bucket_bytes * cost("settling_memory")

    @property
    def records_manifest(self) -> float:
        """Bytes."""
        return self.parts * _listed(PartFacts(file=_PART, bucket=1, chosen=4096, rejected=4096).model_dump())

    @property
    def scored_manifest(self) -> float:
        """Bytes; each trainer worker reads all of it."""
        facts = ShardFacts(file=_PART, train_chosen=4096, train_rejected=4096, validation_chosen=100,
                           validation_rejected=100, train_tokens=4_000_000)  # fmt: skip
        return self.parts * _listed(facts.model_dump())

    @property
    def plan_memory(self) -> float:
        """Bytes of the counts that each trainer worker plans from, at the least: one small object per shard."""
        counts = ShardCounts(4096, 4096)
        return self.parts * (sys.getsizeof(counts) + sys.getsizeof(vars(counts)) + 2 * sys.getsizeof(4096))


def most_even_votes(job: Job) -> float:
    """Votes up to which more buckets keep each at BUCKET_BYTES; from there on buckets grow."""
    return 2**MOST_BITS * BUCKET_BYTES / job.vote_bytes


def pool_memory(job: Job) -> float:
    """Bytes of the decoded shards one trainer worker keeps: two pools."""
    return 2 * POOL_ROWS * job.mean_tokens * (ID_BYTES + MASK_BYTES)


def host_seconds_per_row(job: Job) -> float:
    """What every worker does for every row of every window, its own or not: plan, decode the shard, lay out."""
    return cost("plan") + cost("batch") + cost("decode") * job.mean_tokens
