"""Held-out votes: does the trained model's implicit reward rank thumbs-up above thumbs-down? How likely are they?"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray.data
import torch
from ray.data import ActorPoolStrategy

from bco_ray.evaluation.votes import JudgedVotes, named, told_apart
from bco_ray.models.loading import load_frozen
from bco_ray.models.packing import fill_packs, lay_out
from bco_ray.models.policy import Policy
from bco_ray.objective import SourceOffsets
from bco_ray.objective.density import auc
from bco_ray.storage import files, parquet
from bco_ray.storage.ragged import Ragged
from bco_ray.storage.scored import ScoredManifest
from bco_ray.telemetry import Advance

_JUDGED = pa.schema(
    [("reward", pa.float32()), ("label", pa.bool_()), ("logp", pa.float32()), ("tokens", pa.int64()),
     ("prompt", pa.int64()), ("source", pa.string()), ("user", pa.string())]
)  # fmt: skip
"""`tokens`: how many `logp` is the sum over. `prompt`: the prompt's hash."""


@dataclass(frozen=True)
class HeldOut:
    """Metrics on the validation split, named as during training with prefix `eval_`; None where a class is absent."""

    rows: int
    metrics: dict[str, float | None]


class RewardScorer:
    """log pi and r = beta * (log pi - log ref) for each validation row of scored shards."""

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
    def logps(self, ids: Sequence[np.ndarray], masks: Sequence[np.ndarray]) -> np.ndarray:
        """log pi of what each row's mask rates, float32."""
        found_N = np.empty(len(ids), dtype=np.float32)
        for numbers in fill_packs([len(row) for row in ids], self.max_tokens) if len(ids) else []:
            pack = lay_out([ids[i] for i in numbers], [masks[i] for i in numbers])
            found_N[numbers] = self.policy(pack.to(self.device)).cpu().numpy()
        return found_N

    def _judge(self, shard: pa.Table) -> pa.Table:
        rows = shard.filter(pc.and_(pc.equal(shard["split"], "validation"), pc.greater(shard["weight"], 0)))
        ids, masks = Ragged(rows["input_ids"]), Ragged(rows["completion_mask"])
        logps = self.logps(*([column[n] for n in range(rows.num_rows)] for column in (ids, masks)))
        rewards = self.beta * (logps - rows["reference_logp"].to_numpy())
        tokens = [int(masks[i][1:].sum()) for i in range(rows.num_rows)]
        numbers = [pa.array(rewards, pa.float32()), rows["label"], pa.array(logps), pa.array(tokens, pa.int64())]
        return pa.table([*numbers, rows["prompt_hash"], rows["source"], rows["user"]], schema=_JUDGED)


@dataclass(frozen=True)
class Machine:
    """What a copy of the model runs on, how many copies there may be, and how many tokens one forward has."""

    max_tokens: int
    dtype: str
    quantization: str
    device: str
    threads: int
    num_workers: int
    num_gpus: float

    def scorer(self, directory: str, *, beta: float) -> RewardScorer:
        """A copy of the model in a directory."""
        return RewardScorer(
            directory,
            beta=beta,
            max_tokens=self.max_tokens,
            dtype=self.dtype,
            quantization=self.quantization,
            device=self.device,
            threads=self.threads,
        )


def evaluate_held_out(
    scored: Path,
    manifest: ScoredManifest,
    model_directory: str,
    *,
    beta: float,
    delta: float,
    offsets: SourceOffsets | None = None,
    machine: Machine,
) -> HeldOut:
    """Judge `model_directory` on the validation rows of scored shards. The reward shift is only read."""
    votes = judge_held_out(scored, manifest, [model_directory], beta=beta, machine=machine)[0]
    if not len(votes.label_N):
        return HeldOut(0, {})
    metrics = reward_metrics(votes.reward_N, votes.label_N, delta=votes.deltas(delta, offsets))
    metrics |= likelihood_metrics(votes.logp_N, votes.label_N, votes.tokens_N)
    return HeldOut(len(votes.label_N), metrics)


def judge_held_out(
    scored: Path,
    manifest: ScoredManifest,
    models: Sequence[str],
    *,
    beta: float,
    machine: Machine,
    progress: Advance | None = None,
) -> list[JudgedVotes]:
    """The validation rows of scored shards, in their order, with the rewards of each of these model directories."""
    held_out = [shard for shard in manifest.shards if shard.validation_chosen + shard.validation_rejected]
    total = len(models) * sum(shard.validation_chosen + shard.validation_rejected for shard in held_out)
    found: list[list[pa.Table]] = [[_JUDGED.empty_table()] for _ in models]
    done = 0
    items = [
        {"model": place, "directory": directory, "file": str(scored / shard.file)}
        for place, directory in enumerate(models)
        for shard in held_out
    ]
    for table in _scored_anew(items, beta, machine):
        for place in pc.unique(table["model"]).to_pylist():
            found[place].append(table.filter(pc.equal(table["model"], place)).drop_columns("model"))
        done += table.num_rows
        if progress:
            progress(done, total, "held-out votes")
    return [_as_votes(pa.concat_tables(tables)) for tables in found]


class ScorerOfMany:
    """A Ray Data actor: judges by the model that an item names, and holds one at a time."""

    def __init__(self, beta: float, machine: Machine) -> None:
        self._beta = beta
        self._machine = machine
        self._scorer: tuple[str, RewardScorer] | None = None

    def __call__(self, items: pa.Table) -> pa.Table:
        """Rows of `model` (a number), `directory` and `file` to rows of `_JUDGED` with `model`."""
        tables = [self._judged(**item) for item in items.to_pylist()]
        return pa.concat_tables(tables)

    def _judged(self, model: int, directory: str, file: str) -> pa.Table:
        if self._scorer is None or self._scorer[0] != directory:
            self._scorer = None  # before the next is loaded
            self._scorer = (directory, self._machine.scorer(directory, beta=self._beta))
        rows = self._scorer[1](pa.table({"file": [file]}))
        return rows.append_column("model", pa.array([model] * rows.num_rows, pa.int32()))


def _scored_anew(items: list[dict[str, Any]], beta: float, machine: Machine) -> Iterator[pa.Table]:
    if not items:
        return
    judged = ray.data.from_items(items, override_num_blocks=len(items)).map_batches(
        ScorerOfMany,
        fn_constructor_kwargs={"beta": beta, "machine": machine},
        compute=ActorPoolStrategy(min_size=1, max_size=machine.num_workers),
        num_gpus=machine.num_gpus,
        batch_format="pyarrow",
        batch_size=None,
    )
    yield from judged.iter_batches(batch_format="pyarrow", batch_size=None)


def _as_votes(rows: pa.Table) -> JudgedVotes:
    columns = {f"{name}_N": rows[name].to_numpy() for name in _JUDGED.names if name not in ("source", "user")}
    return JudgedVotes(**columns, source_N=named(rows["source"]), user_N=told_apart(rows["user"]))


def reward_metrics(
    rewards_N: np.ndarray, labels_N: np.ndarray, *, delta: np.ndarray | float
) -> dict[str, float | None]:
    """AUC, accuracy at delta (a row is right on its label's side), class means and their difference.

    `delta`: one for all rows, or one for each.
    """
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
