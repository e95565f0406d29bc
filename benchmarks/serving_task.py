"""What the sides are asked: a random Llama with a tokenizer trained on made-up words, and prompts of those words."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

SIZES = {
    "7m": {"hidden_size": 256, "intermediate_size": 704, "num_hidden_layers": 6},
    "41m": {"hidden_size": 512, "intermediate_size": 1376, "num_hidden_layers": 12},
}
VOCABULARY = 8192
HEAD_WIDTH = 64
WINDOW = 1024


@dataclass(frozen=True)
class Case:
    """Tokens a prompt and an answer may have (first and last), and how many tokens all prompts share."""

    size: str
    prompt: tuple[int, int]
    new: tuple[int, int]
    shared: int = 0


CASES = {
    "short": Case("41m", (16, 64), (8, 96)),
    "long": Case("7m", (400, 500), (32, 32)),
    "system": Case("41m", (216, 280), (8, 64), shared=200),
    "overhead": Case("7m", (16, 64), (64, 64)),
}


@dataclass(frozen=True)
class Ask:
    """One request. `tokens` of the prompt and `new` ones at most."""

    prompt: str
    tokens: int
    new: int


def write_model(directory: Path, size: str) -> Path:
    """A model directory, made if it is missing. Its own sampling is greedy, which `transformers serve` goes by."""
    if (directory / "config.json").is_file():
        return directory
    import torch
    import transformers

    from bco_ray.testing.tiny import CHATML, save, train_tokenizer

    tokenizer = train_tokenizer([" ".join(words(20_000))], vocab=VOCABULARY, chat_template=CHATML)
    heads = SIZES[size]["hidden_size"] // HEAD_WIDTH
    config = transformers.LlamaConfig(
        **SIZES[size], vocab_size=len(tokenizer), num_attention_heads=heads, num_key_value_heads=heads,
        max_position_embeddings=WINDOW, tie_word_embeddings=True, bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id, dtype="float32",
    )  # fmt: skip
    torch.manual_seed(0)
    save(transformers.LlamaForCausalLM(config), tokenizer, directory)
    greedy = transformers.GenerationConfig(eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id)
    greedy.save_pretrained(directory)
    return directory


def write_asks(tokenizer: Any, case: Case, count: int, seed: int) -> list[Ask]:
    """`count` requests, lengths drawn evenly; the same for the same seed."""
    random, vocabulary = np.random.default_rng(seed), words(20_000)
    head = _text(tokenizer, np.random.default_rng(0), vocabulary, case.shared) if case.shared else ""
    asks = []
    for _ in range(count):
        length = int(random.integers(case.prompt[0], case.prompt[1] + 1)) - case.shared
        prompt = head + _text(tokenizer, random, vocabulary, length)
        asks.append(
            Ask(prompt, len(tokenizer(prompt)["input_ids"]), int(random.integers(case.new[0], case.new[1] + 1)))
        )
    return asks


def words(count: int) -> list[str]:
    """Made-up words of two to five syllables, the same ones each time."""
    random = np.random.default_rng(0)
    syllables = [consonant + vowel for consonant in "bdfgklmnprstvz" for vowel in "aeiou"]
    return ["".join(random.choice(syllables, random.integers(2, 6))) for _ in range(count)]


def _text(tokenizer: Any, random: np.random.Generator, vocabulary: list[str], length: int) -> str:
    """Words until there are about `length` tokens."""
    chosen = [str(word) for word in random.choice(vocabulary, length)]
    counts = np.cumsum([len(tokenizer(" " + word)["input_ids"]) for word in chosen])
    return "".join(f" {word}" for word in chosen[: int(np.searchsorted(counts, length)) + 1])
