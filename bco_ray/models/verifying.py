"""What a model directory must pass before traffic may reach it. Reads every weight once, one tensor at a time.

Whether it has the bytes it was registered with is for the registry to say, whether it generates for the engine.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jinja2
import torch
from safetensors import SafetensorError, safe_open

from bco_ray.errors import ModelError
from bco_ray.models.loading import base_of, check_model_directory, is_adapter, vocabulary_size
from bco_ray.storage.local_copies import local_copy
from bco_ray.text import Tokenizer, end_of_turn_ids, load_tokenizer

_WHOLE, _ADAPTER = "model.safetensors", "adapter_model.safetensors"
_AT_ONCE = 1 << 24
"""Numbers looked at together: bounds the memory that one large tensor takes beside itself."""


def check_servable(directory: Path) -> None:
    """A whole model, or an adapter together with its base. Raises ModelError with the reason."""
    check_model_directory(directory)
    if is_adapter(directory):
        base = _base(directory)
        check_servable(base)
        if (directory / "tokenizer_config.json").is_file():
            check_same_tokens(directory, base)
            check_tokenizer(directory)
    else:
        check_tokenizer(directory)
    check_weights(directory)


def check_tokenizer(directory: Path) -> None:
    """It renders a conversation, and all its ids have a row in the embedding table. Raises ModelError."""
    tokenizer = load_tokenizer(directory)
    message = {"role": "user", "content": "Hello"}
    try:
        ids = tokenizer.apply_chat_template([message], tokenize=True, add_generation_prompt=True, return_dict=True)
    except (ValueError, TypeError, KeyError, jinja2.TemplateError) as error:
        raise ModelError(f"{directory}: its chat template refuses a plain user message: {error}") from None
    if not ids["input_ids"]:
        raise ModelError(f"{directory}: its chat template makes nothing of a plain user message.")
    rows = _embedding_rows(directory)
    for token, number in (*tokenizer.get_vocab().items(), *(("end of turn", i) for i in _ends(tokenizer, directory))):
        if number >= rows:
            raise ModelError(
                f"{directory}: the tokenizer's {token!r} has the id {number}, the embedding table only {rows} rows: "
                "this tokenizer belongs to another model."
            )


def check_same_tokens(directory: Path, base: Path) -> None:
    """An adapter reads the tokens that its base learnt. Raises ModelError naming what differs."""
    own, theirs = load_tokenizer(directory), load_tokenizer(base)
    vocabulary, expected = own.get_vocab(), theirs.get_vocab()
    if differing := sorted(t for t in vocabulary.keys() | expected.keys() if vocabulary.get(t) != expected.get(t)):
        shown = f"{len(differing)} tokens differ, for example {differing[0]!r}"
        raise ModelError(f"{directory}: its vocabulary is not that of its base {base}: {shown}.")
    special, known = own.special_tokens_map, theirs.special_tokens_map
    if special != known:
        raise ModelError(f"{directory}: its special tokens {special} are not those of its base {base}, {known}.")


def check_weights(directory: Path) -> None:
    """All tensors that the index promises are there, whole and finite. Raises ModelError naming file and tensor."""
    for path, promised in _weight_files(directory).items():
        with _opened(path) as file:
            names = set(file.keys())
            if missing := sorted(promised - names):
                raise ModelError(f"{path}: {missing[0]} is not in it, though the index of the weights says so.")
            for name in sorted(names):
                if not _is_finite(file.get_tensor(name)):
                    raise ModelError(f"{path}: {name} holds NaN or infinity.")


def _weight_files(directory: Path) -> dict[Path, set[str]]:
    """Each file of weights, and the tensors that an index says are in it (none if there is no index)."""
    single = directory / (_ADAPTER if is_adapter(directory) else _WHOLE)
    index = single.with_name(f"{single.name}.index.json")
    if single.is_file():
        return {single: set()}
    if not index.is_file():
        raise ModelError(f"{directory}: no weights: it has neither {single.name} nor {index.name}.")
    try:
        placed: dict[str, str] = json.loads(index.read_text())["weight_map"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(f"{index}: not an index of weights ({error}).") from None
    found: dict[Path, set[str]] = {}
    for name, file in placed.items():
        found.setdefault(directory / file, set()).add(name)
    return found


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """A safetensors file, mapped and not read; opening it compares its header with its length."""
    try:
        with safe_open(str(path), framework="pt") as file:
            yield file
    except (OSError, SafetensorError) as error:
        raise ModelError(f"{path}: damaged, cut short or not there: {error}") from None


def _is_finite(tensor: torch.Tensor) -> bool:
    if not tensor.is_floating_point():
        return True
    parts = torch.split(tensor.flatten(), _AT_ONCE)
    small = tensor.element_size() == 1  # torch knows few operations on eight bits
    return all(bool(torch.isfinite(part.float() if small else part).all()) for part in parts)


def _base(directory: Path) -> Path:
    try:
        base = local_copy(base_of(directory))
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(f"{directory}: its adapter_config.json does not name its base: {error!r}") from None
    if not base.is_dir():
        raise ModelError(f"{directory}: its base {base} is not there.")
    return base


def _embedding_rows(directory: Path) -> int:
    try:
        return vocabulary_size(directory)
    except (OSError, ValueError, KeyError, AttributeError) as error:
        raise ModelError(f"{directory}: its config.json does not say how large the vocabulary is: {error}") from None


def _ends(tokenizer: Tokenizer, directory: Path) -> frozenset[int]:
    try:
        return end_of_turn_ids(tokenizer, directory)
    except (OSError, ValueError, AttributeError) as error:
        raise ModelError(f"{directory}: generation_config.json cannot be read: {error}") from None
