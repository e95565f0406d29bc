"""Held-out votes: does the trained model's implicit reward rank thumbs-up above thumbs-down? How likely are they?"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray.data
import torch
from ray.data import ActorPoolStrategy

from bco_ray.models.loading import load_frozen
from bco_ray.models.packing import fill_packs, lay_out
from bco_ray.models.policy import Policy
from bco_ray.objective.density import auc
from bco_ray.storage import files, parquet
from bco_ray.storage.ragged import Ragged
from bco_ray.storage.scored import ScoredManifest

_JUDGED = pa.schema([("reward", pa.float32()), ("label", pa.bool_()), ("logp", pa.float32()), ("tokens", pa.int64())])
"""`tokens`: how many `logp` is the sum over."""


@dataclass(frozen=True)
class HeldOut:
    """Metrics on the validation split, named as during training with prefix `eval_`; None where a class is absent."""

    rows: int
    metrics: dict[str, float | None]


class RewardScorer:
    """A Ray Data actor: log pi and r = beta * (log pi - log ref) for each validation row of scored shards."""

    def __init__(
        self,
        model_directory: str,
        *,
        beta: float,
        max_tokens: int,
        dtype: str,
        quantization: str,
        device: str,
        threads: int,
    ) -> None:
        torch.set_num_threads(threads)
        self.device = torch.device(device)
        lm = load_frozen(model_directory, dtype=getattr(torch, dtype), quantization=quantization)
        self.policy = Policy(lm).to(self.device)
        self.beta = beta
        self.max_tokens = max_tokens

    def __call__(self, shards: pa.Table) -> pa.Table:
        """`file` names shards; a few numbers per validation row come out, train rows are passed over."""
        paths = map(files.path_of, shards["file"].to_pylist())
        return pa.concat_tables([self._judge(parquet.read_table(path)) for path in paths])

    @torch.inference_mode()
    def _judge(self, shard: pa.Table) -> pa.Table:
        rows = shard.filter(pc.and_(pc.equal(shard["split"], "validation"), pc.greater(shard["weight"], 0)))
        ids, masks = Ragged(rows["input_ids"]), Ragged(rows["completion_mask"])
        logps = np.empty(rows.num_rows, dtype=np.float32)
        for numbers in fill_packs(ids.lengths, self.max_tokens) if rows.num_rows else []:
            pack = lay_out([ids[i] for i in numbers], [masks[i] for i in numbers])
            logps[numbers] = self.policy(pack.to(self.device)).cpu().numpy()
        rewards = self.beta * (logps - rows["reference_logp"].to_numpy())
        tokens = [int(masks[i][1:].sum()) for i in range(rows.num_rows)]
        columns = [pa.array(rewards, pa.float32()), rows["label"].combine_chunks(), pa.array(logps), pa.array(tokens)]
        return pa.table(columns, schema=_JUDGED)


def evaluate_held_out(
    scored: Path,
    manifest: ScoredManifest,
    model_directory: str,
    *,
    beta: float,
    delta: float,
    max_tokens: int,
    dtype: str,
    quantization: str,
    device: str,
    threads: int,
    num_workers: int,
    num_gpus: float,
) -> HeldOut:
    """Judge `model_directory` on the validation rows of scored shards. The reward shift is only read."""
    total = manifest.count("validation_chosen") + manifest.count("validation_rejected")
    if total == 0:
        return HeldOut(0, {})
    shards = [{"file": str(scored / shard.file)} for shard in manifest.shards]
    judged = ray.data.from_items(shards, override_num_blocks=len(shards)).map_batches(
        RewardScorer,
        fn_constructor_args=(model_directory,),
        fn_constructor_kwargs={
            "beta": beta,
            "max_tokens": max_tokens,
            "dtype": dtype,
            "quantization": quantization,
            "device": device,
            "threads": threads,
        },
        compute=ActorPoolStrategy(min_size=1, max_size=num_workers),
        num_gpus=num_gpus,
        batch_format="pyarrow",
        batch_size=None,
    )
    tables = [t for t in judged.iter_batches(batch_format="pyarrow", batch_size=None) if t.num_rows]
    rows = pa.concat_tables(tables)
    reward_N, label_N, logp_N, tokens_N = (rows[name].to_numpy() for name in _JUDGED.names)
    metrics = reward_metrics(reward_N, label_N, delta=delta) | likelihood_metrics(logp_N, label_N, tokens_N)
    return HeldOut(rows.num_rows, metrics)


def reward_metrics(rewards_N: np.ndarray, labels_N: np.ndarray, *, delta: float) -> dict[str, float | None]:
    """AUC, accuracy at delta (a row is right on its label's side), class means and their difference."""
    labels_N = labels_N.astype(bool)
    up, down = rewards_N[labels_N], rewards_N[~labels_N]
    both = len(up) > 0 and len(down) > 0
    correct = np.where(labels_N, rewards_N > delta, rewards_N < delta)
    metrics: dict[str, Any] = {
        "eval_auc": auc(rewards_N, labels_N) if both else None,
        "eval_rewards/accuracies": correct.mean(),
        "eval_rewards/chosen": up.mean() if len(up) else None,
        "eval_rewards/rejected": down.mean() if len(down) else None,
        "eval_rewards/margins": up.mean() - down.mean() if both else None,
    }
    return {name: None if value is None else float(value) for name, value in metrics.items()}


def likelihood_metrics(logps_N: np.ndarray, labels_N: np.ndarray, tokens_N: np.ndarray) -> dict[str, float | None]:
    """Mean log-probability of each class's answers, and the SFT loss: mean -log p of a token of a thumbs-up answer."""
    labels_N = labels_N.astype(bool)
    up, down, tokens = logps_N[labels_N], logps_N[~labels_N], tokens_N[labels_N].sum()
    return {
        "eval_logps/chosen": float(up.mean()) if len(up) else None,
        "eval_logps/rejected": float(down.mean()) if len(down) else None,
        "eval_sft_loss": float(-up.sum(dtype=np.float64) / tokens) if tokens else None,
    }
