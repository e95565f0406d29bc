"""Held-out votes judged by the implicit reward."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from bco_ray.evaluation.curves import draw_curves
from bco_ray.evaluation.heldout import RewardScorer, likelihood_metrics, reward_metrics
from bco_ray.schema import SCORED
from bco_ray.testing.scored import write_scored
from bco_ray.testing.tiny import write_tiny_model


def test_the_reference_itself_earns_nothing_and_train_rows_are_passed_over(tmp_path: Path) -> None:
    model = write_tiny_model(tmp_path / "m")
    write_scored(tmp_path / "scored", model, chosen=10, rejected=10, shards=1)
    shard = next((tmp_path / "scored").glob("*.parquet"))
    rows = pq.read_table(shard)
    split = pa.array(["validation" if n % 4 == 0 else "train" for n in range(20)])
    pq.write_table(rows.set_column(rows.schema.get_field_index("split"), "split", split).cast(SCORED), shard)
    scorer = RewardScorer(
        str(model), beta=0.1, max_tokens=64, dtype="float32", quantization="none", device="cpu", threads=1
    )
    judged = scorer(pa.table({"file": [str(shard)]}))
    assert judged.num_rows == 5
    assert np.abs(judged["reward"].to_numpy()).max() < 1e-5
    kept = [0, 4, 8, 12, 16]
    assert np.abs(judged["logp"].to_numpy() - rows["reference_logp"].to_numpy()[kept]).max() < 1e-4
    assert judged["tokens"].to_pylist() == [sum(rows["completion_mask"][n].as_py()[1:]) for n in kept]
    assert judged["label"].to_pylist() == pc.take(rows["label"], pa.array(kept)).to_pylist()


def test_metrics_of_known_rewards() -> None:
    metrics = reward_metrics(np.array([2.0, 0.5, -1.0, 1.0]), np.array([1, 1, 0, 0]), delta=0.75)
    assert metrics == {
        "eval_auc": 0.75,
        "eval_rewards/accuracies": 0.5,
        "eval_rewards/chosen": 1.25,
        "eval_rewards/rejected": 0.0,
        "eval_rewards/margins": 1.25,
    }


def test_an_absent_class_is_null_not_nan() -> None:
    metrics = reward_metrics(np.array([2.0, 0.5]), np.array([True, True]), delta=0.0)
    assert metrics["eval_auc"] is None
    assert metrics["eval_rewards/rejected"] is None
    assert metrics["eval_rewards/accuracies"] == 1.0


def test_likelihood_is_defined_for_one_class_and_for_none() -> None:
    logps_N, tokens_N = np.array([-2.0, -4.0, -9.0]), np.array([1, 2, 3])
    assert likelihood_metrics(logps_N, np.array([1, 1, 0]), tokens_N) == {
        "eval_logps/chosen": -3.0, "eval_logps/rejected": -9.0, "eval_sft_loss": 2.0,
    }  # fmt: skip
    ups = likelihood_metrics(logps_N, np.array([True] * 3), tokens_N)
    assert (ups["eval_logps/rejected"], ups["eval_sft_loss"]) == (None, 2.5)
    downs = likelihood_metrics(logps_N, np.array([False] * 3), tokens_N)
    assert (downs["eval_logps/chosen"], downs["eval_sft_loss"]) == (None, None)


@pytest.mark.parametrize("value", [0.5, None])
def test_curves_are_drawn_with_gaps(tmp_path: Path, value: float | None) -> None:
    keys = ("loss", "rewards/chosen", "rewards/rejected", "delta", "rewards/accuracies", "grad_norm")
    draw_curves([{"step": n, **dict.fromkeys(keys, value)} for n in range(3)], tmp_path / "c.png", title="t")
    assert (tmp_path / "c.png").read_bytes().startswith(b"\x89PNG")
