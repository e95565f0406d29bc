"""The demo's base model: a small Llama taught on the spot to answer the world's questions, in all styles alike."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from bco_ray.demo.world import Prompt, World, school_answer
from bco_ray.telemetry import Advance
from bco_ray.testing.tiny import CHATML, llama, save, train_tokenizer

HIDDEN, LAYERS, VOCAB = 64, 3, 1024
SPREAD = 0.06
"""Standard deviation of the fresh weights: wider than usual, which suits a narrow model with half a minute to learn."""

LEARNING_RATE, WARMUP, BATCH = 8e-3, 0.05, 32
IGNORED = -100

Row = tuple[list[int], int]
"""Token ids of a dialogue, and how many of them are the prompt."""


WORLD = World()
"""The world everything in the demo shares unless told otherwise."""


def train_base(
    directory: str | Path, *, seed: int = 0, steps: int = 450, world: World = WORLD, progress: Advance | None = None
) -> None:
    """Pre-train from scratch and write a Hugging Face directory: about 0.2 million float32 weights, half a minute.

    The lessons use the world's train prompts only. Fewer `steps` make a worse model sooner, for tests.
    """
    rng = random.Random(seed)
    lessons = [_lesson(world.train_prompts, rng) for _ in range(steps * BATCH)]
    texts = [text for prompt, answer in lessons[:4000] for text in (prompt.text, answer)]
    tokenizer = train_tokenizer(["user assistant system"] * 1000 + texts, vocab=VOCAB, chat_template=CHATML)
    model = llama(tokenizer, hidden=HIDDEN, layers=LAYERS, seed=seed, spread=SPREAD)
    rows = [_encode(tokenizer, *lesson) for lesson in lessons]
    with _one_thread():
        _teach(model, tokenizer.pad_token_id, _batches(rows, rng), steps, progress)
    save(model.eval(), tokenizer, Path(directory))


@contextmanager
def _one_thread() -> Iterator[None]:
    """Matrices this small gain little from a second thread and lose much to waiting for it on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _teach(model: Any, pad: int, batches: Iterator[list[Row]], steps: int, progress: Advance | None) -> None:
    """One optimiser step per batch; AdamW on a cosine."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, betas=(0.9, 0.98), weight_decay=0.01)
    for step, batch in enumerate(batches):
        optimizer.param_groups[0]["lr"] = LEARNING_RATE * _schedule(step / steps)
        loss = _loss(model, *_tensors(batch, pad))
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if progress:
            progress(step + 1, steps, f"loss {loss.item():.3f}")


def load_model(directory: str | Path) -> tuple[Any, Any]:
    """(model, tokenizer) of a model directory, float32, on the GPU if there is one."""
    model = AutoModelForCausalLM.from_pretrained(str(directory), dtype=torch.float32)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return model.to(device).eval(), AutoTokenizer.from_pretrained(str(directory))


def _lesson(prompts: tuple[Prompt, ...], rng: random.Random) -> tuple[Prompt, str]:
    prompt = rng.choice(prompts)
    return prompt, school_answer(prompt, rng)


def _encode(tokenizer: Any, prompt: Prompt, answer: str) -> Row:
    """The dialogue as the chat template renders it, up to the end-of-turn token."""
    head = tokenizer.apply_chat_template(prompt.messages, tokenize=True, add_generation_prompt=True, return_dict=True)[
        "input_ids"
    ]
    said = tokenizer(answer, add_special_tokens=False)["input_ids"]
    return [*head, *said, tokenizer.eos_token_id], len(head)


def _batches(rows: list[Row], rng: random.Random) -> Iterator[list[Row]]:
    """Batches of dialogues of about the same length (little padding), in random order."""
    pool = BATCH * 32
    for start in range(0, len(rows), pool):
        near = sorted(rows[start : start + pool], key=lambda row: len(row[0]))
        batches = [near[i : i + BATCH] for i in range(0, len(near), BATCH)]
        rng.shuffle(batches)
        yield from batches


def _tensors(batch: list[Row], pad: int) -> tuple[Tensor, Tensor]:
    """(ids_BT, targets_BT): right padded; a target is the next token where the assistant speaks it, else IGNORED."""
    width = max(len(ids) for ids, _ in batch)
    ids_BT = torch.tensor([ids + [pad] * (width - len(ids)) for ids, _ in batch])
    targets_BT = torch.full_like(ids_BT, IGNORED)
    for row, (ids, head) in enumerate(batch):
        targets_BT[row, head - 1 : len(ids) - 1] = torch.tensor(ids[head:])
    return ids_BT, targets_BT


def _loss(model: Any, ids_BT: Tensor, targets_BT: Tensor) -> Tensor:
    """Mean cross-entropy per assistant token; logits are made for those positions only."""
    hidden_BTH = model.model(input_ids=ids_BT, use_cache=False).last_hidden_state
    spoken_BT = targets_BT != IGNORED
    return F.cross_entropy(model.lm_head(hidden_BTH[spoken_BT]), targets_BT[spoken_BT])


def _schedule(done: float) -> float:
    """Linear warm-up, then a cosine down to a twentieth; `done` in [0, 1)."""
    if done < WARMUP:
        return (done + 1e-3) / WARMUP
    return 0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * (done - WARMUP) / (1 - WARMUP)))
