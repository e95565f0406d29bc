"""What judges votes by its likelihoods: answers as tokens, a small model made from the training side, and trainings.

A answers (distinct ones), N votes.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from real_votes_data import Votes

from bco_ray.models.loading import load_frozen
from bco_ray.models.packing import Pack, fill_packs, lay_out
from bco_ray.models.policy import Policy
from bco_ray.objective import LOSSES
from bco_ray.schema import SCORED
from bco_ray.scoring.tokens import Tokenizing
from bco_ray.storage.scored import ScoredManifest, ShardFacts, commit_scored
from bco_ray.testing.tiny import CHATML, llama, save, train_tokenizer
from bco_ray.training.gang import SoloGang
from bco_ray.training.loop import train
from bco_ray.training.setup import TrainSetup
from bco_ray.training.step import Objective

NEVER = 1_000_000_000

Rows = list[tuple[NDArray[np.int64], NDArray[np.bool_]]]
"""Token ids and completion mask of each."""


@dataclass(frozen=True)
class Machine:
    """Where and in which precision models run. `max_tokens` of one pack."""

    device: str
    bf16: bool
    max_tokens: int
    max_length: int
    threads: int = 1

    @property
    def dtype(self) -> torch.dtype:
        return torch.bfloat16 if self.bf16 else torch.float32


@dataclass(frozen=True)
class Recipe:
    """How a model is aligned."""

    loss: str
    learning_rate: float
    epochs: int
    rows_per_step: int
    beta: float = 0.1
    adapter: dict[str, Any] | None = None
    gradient_checkpointing: bool = False


@dataclass(frozen=True)
class Shape:
    """A model made here, and how it is fitted: `epochs` is the length of its schedule."""

    vocabulary: int
    hidden: int
    layers: int
    epochs: int
    learning_rate: float
    rows_per_step: int = 8


@dataclass(frozen=True)
class Tokens:
    """Answers as a model's tokenizer has them. `keyed`: rows of those that fit; `row_A` which of them, -1 for none."""

    keyed: pa.Table
    row_A: NDArray[np.int64]


def tokens_of(votes: Votes, model: Path, machine: Machine) -> Tokens:
    """Every distinct answer once. What the template refuses or is too long has no row."""
    keyed, _ = Tokenizing(str(model), machine.max_length, validation=0.0, with_text=False)(votes.answers)
    place = {name: votes.answers[name].to_pylist() for name in ("file", "position", "entry")}
    number = {key: answer for answer, key in enumerate(zip(*place.values(), strict=True))}
    row_A = np.full(len(number), -1)
    for row, key in enumerate(zip(*(keyed[name].to_pylist() for name in place), strict=True)):
        row_A[number[key]] = row
    return Tokens(keyed, row_A)


def completion_lengths(tokens: Tokens) -> NDArray[np.int64]:
    """Tokens of each answer's completion, (A,); 0 for those that have none."""
    counts = np.array([sum(mask) for mask in tokens.keyed["completion_mask"].to_pylist()])
    return np.where(tokens.row_A < 0, 0, counts[tokens.row_A])


def logps(
    model: Path, tokens: Tokens, machine: Machine, answers: NDArray[np.int64] | None = None
) -> NDArray[np.float64]:
    """Of each answer's completion given its prompt, (A,); NaN for those that do not fit, or are not in `answers`."""
    policy = Policy(load_frozen(model, dtype=machine.dtype)).to(machine.device)
    wanted = np.arange(len(tokens.row_A)) if answers is None else answers
    wanted = wanted[tokens.row_A[wanted] >= 0]
    found_A = np.full(len(tokens.row_A), np.nan)
    found_A[wanted] = _logps(policy, _rows(tokens.keyed.take(pa.array(tokens.row_A[wanted]))), machine)
    return found_A


def align(
    base: Path, run: Path, votes: Votes, tokens: Tokens, rows: NDArray[np.int64], recipe: Recipe, machine: Machine,
    reference_A: NDArray[np.float64], seed: int,
) -> Path:  # fmt: skip
    """The directory of `base` trained on the votes in `rows`, by the loop that every run takes."""
    shutil.rmtree(run, ignore_errors=True)
    run.mkdir(parents=True)
    _write_scored(run / "scored", votes, tokens, rows, reference_A)
    itself = "live" if recipe.adapter is None else "adapter_off"
    setup = TrainSetup(
        scored=str(run / "scored"), model=str(base), run=str(run), adapter=recipe.adapter,
        objective=Objective(recipe.beta, LOSSES[recipe.loss].gain, LOSSES[recipe.loss].gain, recipe.loss),
        half_life_rows=512.0, learning_rate=recipe.learning_rate, lr_scheduler="linear", warmup_ratio=0.1,
        weight_decay=0.0, max_grad_norm=1.0, epochs=recipe.epochs, rows_per_step=recipe.rows_per_step,
        max_tokens_per_micro_batch=machine.max_tokens, zero_stage=0, bf16=machine.bf16, device=machine.device,
        checkpoint_every=NEVER, checkpoint_keep=1, seed=seed, threads=machine.threads, max_length=machine.max_length,
        reference=itself if recipe.loss == "kto" else "precomputed",
        gradient_checkpointing=recipe.gradient_checkpointing,
    )  # fmt: skip
    train(setup, SoloGang())
    shutil.rmtree(run / "checkpoints")
    return run / "model"


def fit_small(
    directory: Path, votes: Votes, rows: NDArray[np.int64], shape: Shape, machine: Machine, *, seed: int,
    valid: NDArray[np.int64] | None = None, epochs: int | None = None,
) -> list[float]:  # fmt: skip
    """A language model in `directory`, made of the answers that the votes in `rows` are on and of nothing else.

    With `valid`: after each epoch nats per character on the answers of those votes. It stops after `epochs`, if given,
    on the same schedule.
    """
    answers = np.unique(votes.answer_N[rows])
    texts = [text for answer in answers for text in votes.texts[answer]]
    tokenizer = train_tokenizer(["user assistant system"] * 100 + texts, vocab=shape.vocabulary, chat_template=CHATML)
    lm = llama(tokenizer, hidden=shape.hidden, layers=shape.layers, seed=seed, spread=0.06)
    save(lm, tokenizer, directory)
    tokens = tokens_of(votes, directory, machine)
    policy = Policy(lm.train())
    losses: list[float] = []
    for _ in _epochs(policy, _rows(tokens.keyed.take(pa.array(_fitting(tokens, answers)))), shape, seed, epochs):
        if valid is not None:
            losses.append(_nats_per_character(policy, votes, tokens, np.unique(votes.answer_N[valid]), machine))
    save(lm.eval(), tokenizer, directory)
    return losses


def _epochs(policy: Policy, rows: Rows, shape: Shape, seed: int, epochs: int | None) -> Iterator[int]:
    """One pass over all rows after the other, mean loss per completion token, AdamW on a falling rate."""
    random = np.random.default_rng(seed)
    optimizer = torch.optim.AdamW(policy.parameters(), lr=shape.learning_rate, betas=(0.9, 0.98), weight_decay=0.1)
    steps = -(-len(rows) // shape.rows_per_step)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, shape.learning_rate, total_steps=steps * shape.epochs + 1, pct_start=0.1
    )
    for epoch in range(epochs or shape.epochs):
        for batch in np.array_split(random.permutation(len(rows)), steps):
            pack = _pack(rows, batch)
            loss = -policy(pack).sum() / len(pack.source_K)
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(policy.parameters(), 1.0)
            optimizer.step()
            schedule.step()
        yield epoch


def _nats_per_character(
    policy: Policy, votes: Votes, tokens: Tokens, answers: NDArray[np.int64], machine: Machine
) -> float:
    fitting = [answer for answer in answers if tokens.row_A[answer] >= 0]
    logp_K = _logps(policy, _rows(tokens.keyed.take(pa.array(_fitting(tokens, answers)))), machine)
    return -float(logp_K.sum()) / sum(len(votes.texts[answer][1]) for answer in fitting)


def _fitting(tokens: Tokens, answers: NDArray[np.int64]) -> NDArray[np.int64]:
    rows = tokens.row_A[answers]
    return rows[rows >= 0]


def _rows(keyed: pa.Table) -> Rows:
    columns = (keyed[name].to_pylist() for name in ("input_ids", "completion_mask"))
    return [(np.array(ids), np.array(mask)) for ids, mask in zip(*columns, strict=True)]


def _pack(rows: Rows, numbers: Sequence[int] | NDArray[np.int64]) -> Pack:
    return lay_out([rows[n][0] for n in numbers], [rows[n][1] for n in numbers])


@torch.no_grad()
def _logps(policy: Policy, rows: Rows, machine: Machine) -> NDArray[np.float64]:
    logp_K = np.empty(len(rows))
    for numbers in fill_packs([len(ids) for ids, _ in rows], machine.max_tokens or 2 * machine.max_length):
        if numbers:
            logp_K[numbers] = policy(_pack(rows, numbers).to(machine.device)).cpu().numpy()
    return logp_K


def _write_scored(
    directory: Path, votes: Votes, tokens: Tokens, rows: NDArray[np.int64], reference_A: NDArray[np.float64]
) -> None:
    """Scored shards as a scoring run leaves them: one part, all of it for training.

    Equal votes on one answer are one row, which weighs as many times as much: the same mean, in fewer tokens.
    """
    rows = rows[tokens.row_A[votes.answer_N[rows]] >= 0]
    pairs, count = np.unique(np.stack([votes.answer_N[rows], votes.label_N[rows]]), axis=1, return_counts=True)
    answers, label = pairs[0], pairs[1].astype(np.bool_)
    weight = np.where(label, count / count[label].mean(), count / count[~label].mean())
    table = tokens.keyed.take(pa.array(tokens.row_A[answers]))
    columns = {name: table[name] for name in SCORED.names if name in table.column_names}
    columns |= {"label": pa.array(label), "weight": pa.array(weight, pa.float32())}
    columns |= {"reference_logp": pa.array(reference_A[answers], pa.float32())}
    directory.mkdir(parents=True)
    pq.write_table(pa.table(columns).select(SCORED.names).cast(SCORED), directory / "part-00000.parquet")
    facts = ShardFacts(
        file="part-00000.parquet", train_chosen=int(label.sum()), train_rejected=int((~label).sum()),
        validation_chosen=0, validation_rejected=0, train_tokens=int(np.sum(table["n_tokens"].to_numpy())),
    )  # fmt: skip
    kept = len(answers)
    commit_scored(directory, ScoredManifest(inputs={}, read=kept, kept=kept, drops={}, matching={}, shards=[facts]))
