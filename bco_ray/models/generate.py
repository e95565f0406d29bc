"""Sampling answers to chat prompts in batches, the same ones for the same seed.

B: prompts in a batch; P: prompt tokens; N: new tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig

from bco_ray.errors import ModelError
from bco_ray.telemetry import Advance

Messages = list[dict[str, Any]]


@dataclass(frozen=True)
class Generated:
    """One sampled answer. `token_ids` leave out the end token; `finish_reason` is `stop` (it came: `end_id`) or
    `length`.
    """

    text: str
    token_ids: list[int]
    finish_reason: str
    end_id: int | None = None


def generate(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[Messages],
    *,
    max_new_tokens: int,
    temperature: float,
    top_p: float = 1.0,
    seed: int,
    batch_size: int = 128,
    progress: Advance | None = None,
) -> list[Generated]:
    """One answer per prompt, in the order of `prompts`; temperature 0 takes the likeliest token.

    The same arguments give the same answers; another `batch_size` may give others. The caller's random state and the
    model's train/eval mode are left as they were. Raises ModelError if the tokenizer has no chat template.
    """
    ends = end_token_ids(model, tokenizer)
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else next(iter(ends), 0)
    config = _config(max_new_tokens, temperature, top_p, ends, pad)
    ids = [_prompt_ids(tokenizer, prompt) for prompt in prompts]
    order = sorted(range(len(ids)), key=lambda i: len(ids[i]))
    answers: dict[int, Generated] = {}
    with _sampling(model, seed):
        for start in range(0, len(order), batch_size):
            chosen = order[start : start + batch_size]
            new_BN = _sample(model, [ids[i] for i in chosen], config, pad)
            answers.update(zip(chosen, (_answer(tokenizer, row, ends) for row in new_BN), strict=True))
            if progress:
                progress(len(answers), len(order), "answers")
    return [answers[i] for i in range(len(ids))]


def end_token_ids(model: Any, tokenizer: Any) -> frozenset[int]:
    """Every id that ends an answer: the generation config's (one or a list) and the tokenizer's."""
    configured = model.generation_config.eos_token_id
    ids = list(configured) if isinstance(configured, (list, tuple)) else [configured]
    return frozenset(i for i in [*ids, tokenizer.eos_token_id] if i is not None)


def _config(max_new_tokens: int, temperature: float, top_p: float, ends: frozenset[int], pad: int) -> GenerationConfig:
    """Everything said outright, so that a model directory's own sampling defaults (top_k 50, ...) do not sneak in."""
    sampling = {"temperature": temperature, "top_p": top_p, "top_k": 0} if temperature > 0 else {}
    return GenerationConfig(
        max_new_tokens=max_new_tokens,
        do_sample=temperature > 0,
        num_beams=1,
        repetition_penalty=1.0,
        eos_token_id=sorted(ends) or None,
        pad_token_id=pad,
        **sampling,
    )


def _prompt_ids(tokenizer: Any, prompt: Messages) -> list[int]:
    if not tokenizer.chat_template:
        raise ModelError("the tokenizer has no chat template, so a chat prompt cannot be rendered")
    encoded = tokenizer.apply_chat_template(prompt, tokenize=True, add_generation_prompt=True, return_dict=True)
    return list(encoded["input_ids"])


@contextmanager
def _sampling(model: Any, seed: int) -> Iterator[None]:
    was_training = model.training
    with torch.random.fork_rng(devices=[model.device] if model.device.type == "cuda" else []), torch.inference_mode():
        torch.manual_seed(seed)
        model.eval()
        try:
            yield
        finally:
            model.train(was_training)


def _sample(model: Any, rows: list[list[int]], config: GenerationConfig, pad: int) -> list[list[int]]:
    """New tokens per row, still with what follows the end token."""
    width = max(map(len, rows))
    ids_BP = torch.tensor([[pad] * (width - len(row)) + row for row in rows], device=model.device)
    mask_BP = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows], device=model.device)
    out: Tensor = model.generate(input_ids=ids_BP, attention_mask=mask_BP, generation_config=config)
    return [[int(i) for i in row] for row in out[:, width:].tolist()]


def _answer(tokenizer: Any, new_ids: list[int], ends: frozenset[int]) -> Generated:
    stop = next((n for n, i in enumerate(new_ids) if i in ends), None)
    ids, end_id = (new_ids, None) if stop is None else (new_ids[:stop], new_ids[stop])
    text = tokenizer.decode(ids, skip_special_tokens=True)
    return Generated(text, ids, "length" if stop is None else "stop", end_id)
