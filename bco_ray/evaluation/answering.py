"""Answers of a model to prompts, sampled by Ray Data actors: the same ones however many there are."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import pyarrow as pa
import ray.data
import torch
from ray.data import ActorPoolStrategy

from bco_ray.evaluation.heldout import Machine
from bco_ray.models.generate import generate
from bco_ray.models.loading import load_frozen
from bco_ray.storage.local_copies import local_copy
from bco_ray.telemetry import Advance
from bco_ray.text import load_tokenizer

_IDS = pa.list_(pa.int32())
_ANSWERS = pa.schema(
    [("asked", pa.int32()), ("text", pa.string()), ("tokens", pa.int64()), ("prompt_ids", _IDS), ("ids", _IDS)]
)

PROMPTS_AT_ONCE = 16
"""Of one batch."""

Messages = list[dict[str, Any]]


@dataclass(frozen=True)
class Sampling:
    """How answers are sampled; temperature 0 takes the likeliest token."""

    max_new_tokens: int
    temperature: float
    seed: int


@dataclass(frozen=True)
class Answer:
    """`tokens`: how many, without the end token. `prompt_ids`, `ids`: what the model read and said, with its end."""

    text: str
    tokens: int
    prompt_ids: Sequence[int] = ()
    ids: Sequence[int] = ()


@dataclass(frozen=True)
class Asked:
    """Prompts for the model in a directory."""

    directory: str
    prompts: Sequence[Messages]
    sampling: Sampling


class Answerer:
    """A loaded model that answers prompts as they come."""

    def __init__(self, model_directory: str, machine: Machine) -> None:
        self.tokenizer = load_tokenizer(local_copy(model_directory, weights=False))
        dtype = getattr(torch, machine.dtype)
        lm = load_frozen(model_directory, dtype=dtype, quantization=machine.quantization)
        self.lm = lm if machine.quantization != "none" else lm.to(machine.device)

    def answer(self, prompts: Sequence[Messages], sampling: Sampling) -> list[dict[str, Any]]:
        """The fields of an `Answer` to each, in their order; None where the model has no room."""
        read = [self._read(prompt) for prompt in prompts]
        fitting = [n for n, ids in enumerate(read) if self._has_room(ids, sampling)]
        made = generate(
            self.lm,
            self.tokenizer,
            [prompts[n] for n in fitting],
            max_new_tokens=sampling.max_new_tokens,
            temperature=sampling.temperature,
            seed=sampling.seed,
            batch_size=PROMPTS_AT_ONCE,
        )
        found: list[dict[str, Any]] = [dict.fromkeys(_ANSWERS.names[1:]) for _ in prompts]
        for n, answer in zip(fitting, made, strict=True):
            said = [*answer.token_ids, *([] if answer.end_id is None else [answer.end_id])]
            found[n] = {"text": answer.text, "tokens": len(answer.token_ids), "prompt_ids": read[n], "ids": said}
        return found

    def _read(self, prompt: Messages) -> list[int]:
        rendered = self.tokenizer.apply_chat_template(
            prompt, tokenize=True, add_generation_prompt=True, return_dict=True
        )
        return list(rendered["input_ids"])

    def _has_room(self, prompt_ids: Sequence[int], sampling: Sampling) -> bool:
        """Beyond its positions a model fails, or answers nonsense."""
        positions = getattr(self.lm.config.get_text_config(), "max_position_embeddings", None)
        return positions is None or len(prompt_ids) + sampling.max_new_tokens <= positions


class AnswererOfMany:
    """A Ray Data actor: asks the model that an item names, and holds one at a time."""

    def __init__(self, machine: Machine) -> None:
        torch.set_num_threads(machine.threads)
        self._machine = machine
        self._answerer: tuple[str, Answerer] | None = None

    def __call__(self, items: pa.Table) -> pa.Table:
        """Rows of `asked` (a number) and `batch` (JSON) to rows of `_ANSWERS`."""
        rows = []
        for item in items.to_pylist():
            batch = json.loads(item["batch"])
            answered = self._of(batch["directory"]).answer(batch["prompts"], Sampling(**batch["sampling"]))
            rows += [{"asked": item["asked"], **answer} for answer in answered]
        return pa.Table.from_pylist(rows, schema=_ANSWERS)

    def _of(self, directory: str) -> Answerer:
        if self._answerer is None or self._answerer[0] != directory:
            self._answerer = None  # before the next is loaded
            self._answerer = (directory, Answerer(directory, self._machine))
        return self._answerer[1]


def answers_to(asked: Sequence[Asked], *, machine: Machine, progress: Advance) -> list[list[Answer | None]]:
    """For each of `asked` one answer per prompt, in their order; None for a prompt that leaves no room for one."""
    items = [item for number, one in enumerate(asked) for item in _batches(number, one)]
    answers: list[list[Answer | None]] = [[] for _ in asked]
    if not items:
        return answers
    made = ray.data.from_items(items, override_num_blocks=len(items)).map_batches(
        AnswererOfMany,
        fn_constructor_args=(machine,),
        compute=ActorPoolStrategy(min_size=1, max_size=max(1, min(machine.num_workers, len(items)))),
        num_gpus=machine.num_gpus,
        batch_format="pyarrow",
        batch_size=None,
    )
    total = sum(len(one.prompts) for one in asked)
    for table in made.iter_batches(batch_format="pyarrow", batch_size=None):
        for row in table.to_pylist():
            asked_by = row.pop("asked")
            answers[asked_by].append(None if row["text"] is None else Answer(**row))
        progress(sum(map(len, answers)), total, "answers")
    return answers


def _batches(number: int, asked: Asked) -> Iterator[dict[str, Any]]:
    """Each with a seed of its own, so that it does not matter who answers it."""
    for start in range(0, len(asked.prompts), PROMPTS_AT_ONCE):
        batch = {
            "directory": asked.directory,
            "prompts": list(asked.prompts[start : start + PROMPTS_AT_ONCE]),
            "sampling": asdict(replace(asked.sampling, seed=asked.sampling.seed + start)),
        }
        yield {"asked": number, "batch": json.dumps(batch)}
