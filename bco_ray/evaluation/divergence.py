"""How far a model has gone from its reference, by what it says itself: log pi(y) - log ref(y) of answers y it sampled.

Their mean is an unbiased estimate of KL(pi || ref) where they were sampled at temperature 1. Of answers that were cut
after so many tokens it is that of their first so many tokens, which is at most the whole.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import ray.data
from ray.data import ActorPoolStrategy

from bco_ray.evaluation.answering import PROMPTS_AT_ONCE, Answer
from bco_ray.evaluation.bootstrap import Floats
from bco_ray.evaluation.heldout import Machine, RewardScorer
from bco_ray.telemetry import Advance

_LOGPS = pa.schema([("model", pa.int32()), ("answer", pa.int64()), ("logp", pa.float64())])


class Likelihoods:
    """A Ray Data actor: how likely the model that an item names finds answers; it holds one at a time."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self._scorer: tuple[str, RewardScorer] | None = None

    def __call__(self, items: pa.Table) -> pa.Table:
        """Rows of `model` (a number), `directory` and `answers` (JSON: number, prompt ids, answer ids) to _LOGPS."""
        return pa.concat_tables([self._of(**item) for item in items.to_pylist()])

    def _of(self, model: int, directory: str, answers: str) -> pa.Table:
        if self._scorer is None or self._scorer[0] != directory:
            self._scorer = None  # before the next is loaded
            self._scorer = (directory, self._machine.scorer(directory, beta=1.0))
        numbers, prompts, said = zip(*json.loads(answers), strict=True)
        ids = [np.array(prompt + answer) for prompt, answer in zip(prompts, said, strict=True)]
        masks = [np.arange(len(row)) >= len(prompt) for row, prompt in zip(ids, prompts, strict=True)]
        logps = self._scorer[1].logps(ids, masks).astype(np.float64)
        columns = [pa.array([model] * len(ids), pa.int32()), pa.array(numbers, pa.int64()), pa.array(logps)]
        return pa.table(columns, schema=_LOGPS)


def log_ratios(answers: Sequence[Answer], model: str, reference: str, *, machine: Machine, progress: Advance) -> Floats:
    """log pi(y) - log ref(y) of each answer, over its own tokens and the one that ends it, (N,)."""
    logps: Floats = np.zeros((2, len(answers)))
    items = [item for place, directory in enumerate((model, reference)) for item in _items(place, directory, answers)]
    if not items:
        return np.zeros(0)
    made = ray.data.from_items(items, override_num_blocks=len(items)).map_batches(
        Likelihoods,
        fn_constructor_args=(machine,),
        compute=ActorPoolStrategy(min_size=1, max_size=max(1, min(machine.num_workers, len(items)))),
        num_gpus=machine.num_gpus,
        batch_format="pyarrow",
        batch_size=None,
    )
    done = 0
    for table in made.iter_batches(batch_format="pyarrow", batch_size=None):
        logps[table["model"].to_numpy(), table["answer"].to_numpy()] = table["logp"].to_numpy()
        done += table.num_rows
        progress(done, 2 * len(answers), "likelihoods of answers")
    ratios: Floats = logps[0] - logps[1]
    return ratios


def _items(place: int, directory: str, answers: Sequence[Answer]) -> Iterator[dict[str, Any]]:
    for start in range(0, len(answers), PROMPTS_AT_ONCE):
        batch = enumerate(answers[start : start + PROMPTS_AT_ONCE], start)
        said = [(number, list(answer.prompt_ids), list(answer.ids)) for number, answer in batch]
        yield {"model": place, "directory": directory, "answers": json.dumps(said)}
