"""Computing layers twice changes memory and nothing else; not even where a model would have dropout."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from torch import Tensor, nn

from bco_ray.errors import ModelError
from bco_ray.models.checkpointing import checkpoint_activations
from bco_ray.models.loading import load_policy
from bco_ray.models.packing import lay_out
from bco_ray.models.policy import Policy
from bco_ray.testing.tiny import write_tiny_model

LORA = {"r": 4, "alpha": 8, "target_modules": "all-linear"}
PACK = lay_out([np.arange(3, 23), np.arange(10, 60)], [np.arange(20) > 5, np.arange(50) > 9])

DROPPING: dict[str, dict[str, Any]] = {
    "OPT": {"hidden_size": 32, "num_hidden_layers": 2, "ffn_dim": 64, "num_attention_heads": 2,
            "word_embed_proj_dim": 32, "max_position_embeddings": 64, "dropout": 0.5},
    "GPT2": {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 64,
             "resid_pdrop": 0.5, "embd_pdrop": 0.5, "attn_pdrop": 0.5},
}  # fmt: skip
"""Models whose layers ask for the training mode."""


def write_dropping(name: str, directory: Path) -> Path:
    torch.manual_seed(0)
    config = getattr(transformers, f"{name}Config")(vocab_size=64, bos_token_id=0, eos_token_id=0, **DROPPING[name])
    getattr(transformers, f"{name}LMHeadModel" if name == "GPT2" else f"{name}ForCausalLM")(config).save_pretrained(
        directory
    )
    return directory


def value_and_gradients(policy: Policy) -> list[Tensor]:
    policy.zero_grad()
    logps_B = policy(PACK)
    logps_B.sum().backward()
    return [logps_B.detach(), *(p.grad.clone() for p in policy.parameters() if p.grad is not None)]


def same(these: list[Tensor], those: list[Tensor]) -> bool:
    return len(these) == len(those) > 1 and all(map(torch.equal, these, those))


def forwards_of_layers(policy: Policy) -> list[str]:
    """Names of modules by call, in a forward and backward."""
    calls: list[str] = []
    hooks = [
        module.register_forward_hook(lambda *_, name=name: calls.append(name))
        for name, module in policy.named_modules()
        if isinstance(module, nn.LayerNorm) or type(module).__name__.endswith("RMSNorm")
    ]
    policy(PACK).sum().backward()
    for hook in hooks:
        hook.remove()
    return calls


@pytest.mark.parametrize("name", DROPPING)
def test_dropout_stays_asleep(name: str, tmp_path: Path) -> None:
    policy = Policy(load_policy(write_dropping(name, tmp_path), None, dtype=torch.float32))
    plain = value_and_gradients(policy)
    checkpoint_activations(policy.lm)
    assert same(value_and_gradients(policy), plain)
    assert same(value_and_gradients(policy), plain)
    assert not any(module.training for module in policy.lm.modules())


@pytest.mark.parametrize("adapter", [None, LORA], ids=["full", "lora"])
def test_layers_are_computed_twice_and_give_the_same(adapter: Any, tmp_path: Path) -> None:
    policy = Policy(load_policy(write_tiny_model(tmp_path), adapter, dtype=torch.float32))
    plain, once = value_and_gradients(policy), forwards_of_layers(policy)
    checkpoint_activations(policy.lm)
    checkpoint_activations(policy.lm)
    assert same(value_and_gradients(policy), plain)
    twice = forwards_of_layers(policy)
    assert [twice.count(name) for name in once] == [2 if "layers" in name else 1 for name in once]


def test_nothing_is_computed_twice_where_nothing_is_learnt(tmp_path: Path) -> None:
    policy = Policy(load_policy(write_tiny_model(tmp_path), None, dtype=torch.float32))
    plain = policy(PACK).detach()
    checkpoint_activations(policy.lm)
    with torch.no_grad():
        assert torch.equal(policy(PACK), plain)


def test_a_model_without_layers_is_named() -> None:
    with pytest.raises(ModelError, match="Linear: no layers .* training.gradient_checkpointing"):
        checkpoint_activations(nn.Linear(2, 2))
