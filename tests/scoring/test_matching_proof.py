"""What matching is for, shown where the right answer is known.

Thumbs-up and thumbs-down come from different prompts, x ~ N(+-0.6, 1); an answer has one attribute, and on every prompt
the same votes are cast on both kinds of answers. So the optimum on any one prompt does not depend on how often the
prompt was voted on, and the policy trained on logs whose prompts do match is the one to find.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from torch import Tensor

from bco_ray.objective import RewardShift, bco_loss, window_loss
from bco_ray.schema import PROMPTS
from bco_ray.scoring.matching import Matching, fit_matching
from bco_ray.scoring.matching_prompts import embedding_column

ROWS, SHIFT, STEPS = 20_000, 0.6, 150
GRID = torch.linspace(-2, 2, 41)


class Log:
    """Rows of both classes (first the ups): prompts x (N,), the answer's attribute (N,) 0 or 1, labels, hashes."""

    def __init__(self, seed: int, *, up_at: float, down_at: float) -> None:
        random = np.random.default_rng(seed)
        self.label_N = np.arange(2 * ROWS) < ROWS
        self.x_N = random.normal(np.where(self.label_N, up_at, down_at), 1.0).astype(np.float32)
        liked_N = 1 / (1 + np.exp(-1.5 * self.x_N))  # which attribute is liked depends on the prompt
        self.attribute_N = random.random(2 * ROWS) < np.where(self.label_N, liked_N, 1 - liked_N)
        self.hash_N = random.integers(-(2**63), 2**63, 2 * ROWS)
        rest_ND = random.normal(size=(2 * ROWS, 8))  # what else a prompt says: the same in both classes
        rest_ND *= 6 / np.linalg.norm(rest_ND, axis=1, keepdims=True)
        self.embedding_ND = np.column_stack([self.x_N, rest_ND]).astype(np.float32)

    def write(self, directory: Path) -> list[Path]:
        columns = {
            "prompt_hash": self.hash_N,
            "split": ["train"] * len(self.x_N),
            "chosen": self.label_N.astype(np.int32),
            "rejected": (~self.label_N).astype(np.int32),
            "embedding": embedding_column(self.embedding_ND),
        }
        pq.write_table(pa.Table.from_pydict(columns, schema=PROMPTS), directory / "prompts.parquet")
        return [directory / "prompts.parquet"]


def attribute_logits(parameters_3: Tensor, x_N: Tensor) -> Tensor:
    """log odds that the policy's answer has the attribute; the reference tosses a coin."""
    return parameters_3[0] + parameters_3[1] * x_N + parameters_3[2] * x_N**2


def train(log: Log, weights_N: np.ndarray) -> Tensor:
    """The whole log in every step, by the project's own loss and shift. Returns the policy's log odds on GRID."""
    x_N, attribute_N, label_N = (torch.from_numpy(value) for value in (log.x_N, log.attribute_N, log.label_N))
    weight_N = torch.from_numpy(weights_N).float()
    parameters_3 = torch.zeros(3, requires_grad=True)
    optimizer, shift = torch.optim.Adam([parameters_3], lr=0.05), RewardShift()
    reference_N = torch.full_like(x_N, 0.5).log()
    for _ in range(STEPS):
        logit_N = attribute_logits(parameters_3, x_N)
        logp_N = torch.nn.functional.logsigmoid(torch.where(attribute_N, logit_N, -logit_N))
        sums = bco_loss(logp_N, reference_N, label_N, beta=1.0, delta=shift.delta, weights_B=weight_N)
        optimizer.zero_grad()
        window_loss(sums, chosen_total=ROWS, rejected_total=ROWS).backward()
        optimizer.step()
        shift = shift.advance(sums.shift_sums())
    return attribute_logits(parameters_3.detach(), GRID)


def fitted(log: Log, directory: Path) -> Matching | None:
    return fit_matching(
        log.write(directory), mode="auto", target="positive", min_density_ratio=0.02, max_density_ratio=50.0
    )[0]


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_with_matching_the_policy_is_nearer_to_the_one_of_matched_prompts(tmp_path: Path, seed: int) -> None:
    log = Log(seed, up_at=SHIFT, down_at=-SHIFT)
    matching = fitted(log, tmp_path)
    assert matching is not None
    ones_N = np.ones(2 * ROWS)
    optimum = train(Log(seed + 100, up_at=SHIFT, down_at=SHIFT), ones_N)
    without = (train(log, ones_N) - optimum).abs().mean()
    matched = (train(log, matching.weights(log.embedding_ND, log.hash_N, log.label_N)) - optimum).abs().mean()
    assert matched <= without / 2


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_where_prompts_match_nothing_is_weighted(tmp_path: Path, seed: int) -> None:
    assert fitted(Log(seed, up_at=SHIFT, down_at=SHIFT), tmp_path) is None
