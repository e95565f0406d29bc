"""What a model directory must be before anybody is served by it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from bco_ray.errors import ModelError
from bco_ray.models import loading
from bco_ray.models.verifying import check_servable
from bco_ray.testing.tiny import write_tiny_model
from bco_ray.text import load_tokenizer


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_tiny_model(tmp_path / "model")


@pytest.fixture
def adapter(model: Path, tmp_path: Path) -> Path:
    lora = {"type": "lora", "r": 4, "alpha": 8, "target_modules": "all-linear"}
    policy = loading.load_policy(model, lora, dtype=torch.float32)
    loading.export_model(policy, tmp_path / "adapter", policy.state_dict(), model)
    return tmp_path / "adapter"


def spoil(weights: Path, value: float) -> None:
    tensors = load_file(weights)
    next(iter(tensors.values())).view(-1)[-1] = value
    save_file(tensors, weights, metadata={"format": "pt"})


def add_words(directory: Path, number: int) -> None:
    tokenizer: Any = load_tokenizer(directory)
    tokenizer.add_tokens([f"<word-{n}>" for n in range(number)])
    tokenizer.save_pretrained(directory)


def test_good_ones_pass(model: Path, adapter: Path) -> None:
    check_servable(model)
    check_servable(adapter)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_are_named(model: Path, adapter: Path, value: float) -> None:
    spoil(adapter / "adapter_model.safetensors", value)
    with pytest.raises(ModelError, match="adapter_model.*NaN or infinity"):
        check_servable(adapter)
    spoil(model / "model.safetensors", value)
    with pytest.raises(ModelError, match="NaN or infinity"):
        check_servable(model)


def test_a_file_cut_short_is_named(model: Path) -> None:
    weights = model / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(ModelError, match="model.safetensors: damaged"):
        check_servable(model)


def test_a_tensor_that_the_index_promises_and_nobody_has(model: Path) -> None:
    (model / "model.safetensors").rename(model / "model-00001.safetensors")
    index = {"weight_map": {"lm_head.more": "model-00001.safetensors"}}
    (model / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ModelError, match="lm_head.more is not in it"):
        check_servable(model)


def test_a_tokenizer_with_ids_beyond_the_embeddings(model: Path) -> None:
    add_words(model, 50)
    with pytest.raises(ModelError, match="embedding"):
        check_servable(model)


def test_an_adapter_with_another_tokenizer_than_its_base(adapter: Path) -> None:
    add_words(adapter, 1)
    with pytest.raises(ModelError, match="vocabulary is not that of its base"):
        check_servable(adapter)


def test_a_template_that_refuses_a_plain_message(model: Path) -> None:
    tokenizer: Any = load_tokenizer(model)
    tokenizer.chat_template = "{{ raise_exception('no') }}"
    tokenizer.save_pretrained(model)
    with pytest.raises(ModelError, match="chat template refuses"):
        check_servable(model)
