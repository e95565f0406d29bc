"""The length matching of one scoring run: one pass of sums over its reference shards, and what came of it.

After the prompts are matched, and under their weights: what is evened out is what those leave. Sums are added in shard
order, so the number of workers does not show in any bit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import Any

import pyarrow.compute as pc

from bco_ray.objective.lengths import LengthMatching, LengthSums
from bco_ray.scoring.matching import Each, Matching, in_process
from bco_ray.scoring.shards import completion_lengths, matched_weights
from bco_ray.storage import parquet

COLUMNS = ["prompt_hash", "split", "label", "weight", "completion_mask"]


@dataclass(frozen=True)
class LengthPass:
    """Sums of the train rows of one reference shard, under the weights that matching gives them."""

    matching: Matching | None

    def __call__(self, path: Path) -> LengthSums:
        rows = parquet.read_table(path, columns=COLUMNS)
        weight_N = matched_weights(path, rows, self.matching)
        train_N = pc.equal(rows["split"], "train").to_numpy()
        label_N = rows["label"].to_numpy(zero_copy_only=False)
        return LengthSums.of(completion_lengths(rows)[train_N], label_N[train_N], weight_N[train_N])


def match_lengths(
    shards: Sequence[Path], matching: Matching | None, each: Each = in_process
) -> tuple[LengthMatching | None, dict[str, Any]]:
    """Of these reference shards; and its report: `auc` is the chance that an up is longer than a down (0.5: lengths say
    nothing of labels), `ess_*` the effective share of a class's train rows, both under all weights, before and after.
    """
    sums = reduce(LengthSums.merge, each(LengthPass(matching), shards), LengthSums.none())
    if not sums.both:
        return None, {"applied": False, "reason": "there are no votes of both kinds, whose lengths could be matched"}
    lengths = LengthMatching.fit(sums)
    after = sums.weighted(lengths)
    ess = {"before": sums.ess_fraction(), "after": after.ess_fraction()}
    return lengths, {
        "applied": True,
        "auc_before": sums.auc(),
        "auc_after": after.auc(),
        **{f"ess_{name}_{when}": ess[when][label] for label, name in ((1, "chosen"), (0, "rejected")) for when in ess},
        "edges": list(lengths.edges),
        "factors_rejected": list(lengths.factors[0]),
        "factors_chosen": list(lengths.factors[1]),
    }
