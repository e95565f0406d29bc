"""Model directories: adapters stay adapters, content decides the address, unknown heads are refused."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, GraniteConfig, GraniteForCausalLM, OPTConfig, OPTForCausalLM

from bco_ray.errors import ModelError, SpecError
from bco_ray.models.loading import export_model, fingerprint, is_adapter, load_frozen, load_policy
from bco_ray.models.packing import lay_out
from bco_ray.models.policy import Policy
from bco_ray.objective import completion_logps
from bco_ray.testing.tiny import write_tiny_model

LORA = {"r": 4, "alpha": 8, "target_modules": "all-linear"}
IDS = torch.arange(3, 23)[None]
MASK = torch.arange(20)[None] > 5
PACK = lay_out([np.arange(3, 23)], [np.arange(20) > 5])


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("models") / "base")


@pytest.fixture(scope="module")
def adapter(base: Path) -> Path:
    """A LoRA whose effect is small, as after a short training."""
    lm = load_policy(base, LORA, dtype=torch.float32)
    torch.manual_seed(0)
    for name, parameter in lm.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=3e-3)
    export_model(lm, base.parent / "adapter", lm.state_dict(), base)
    return base.parent / "adapter"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_is_served_and_scored_is_what_was_trained(base: Path, adapter: Path, dtype: torch.dtype) -> None:
    """Merging the adapter in bfloat16 would lose most of it."""
    assert is_adapter(adapter)
    trained = Policy(load_policy(adapter, LORA, dtype=dtype))(PACK)
    assert torch.equal(Policy(load_frozen(adapter, dtype=dtype))(PACK), trained)
    assert not torch.equal(Policy(load_frozen(base, dtype=dtype))(PACK), trained)


def test_a_whole_model_can_start_from_an_adapter(adapter: Path) -> None:
    merged = Policy(load_policy(adapter, None, dtype=torch.float32))(PACK)
    assert merged.item() == pytest.approx(Policy(load_frozen(adapter, dtype=torch.float32))(PACK).item(), rel=1e-5)


@pytest.mark.parametrize("asked", [{"r": 8}, {"alpha": 64}, {"target_modules": ["q_proj"]}])
def test_an_adapter_is_continued_with_its_own_settings(adapter: Path, asked: dict[str, object]) -> None:
    with pytest.raises(SpecError, match="is continued with its own settings"):
        load_policy(adapter, LORA | asked, dtype=torch.float32)


def test_the_policy_has_no_dropout(tmp_path: Path) -> None:
    config = OPTConfig(vocab_size=64, hidden_size=32, num_hidden_layers=2, ffn_dim=64, num_attention_heads=2,
                       max_position_embeddings=64, dropout=0.5, word_embed_proj_dim=32)  # fmt: skip
    OPTForCausalLM(config).save_pretrained(tmp_path)
    policy = Policy(load_policy(tmp_path, None, dtype=torch.float32))
    assert torch.equal(policy(PACK), policy(PACK))


def test_a_scaled_head_is_known_and_an_unknown_one_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = GraniteConfig(vocab_size=64, hidden_size=32, num_hidden_layers=2, intermediate_size=64, logits_scaling=8.0,
                           num_attention_heads=2, num_key_value_heads=2)  # fmt: skip
    GraniteForCausalLM(config).save_pretrained(tmp_path)
    policy = Policy(load_frozen(tmp_path, dtype=torch.float32))
    policy.check()
    logits = AutoModelForCausalLM.from_pretrained(tmp_path)(IDS).logits
    assert policy(PACK).item() == pytest.approx(completion_logps(logits, IDS, MASK).item(), rel=1e-5)
    monkeypatch.setattr("bco_ray.models.policy._logit_scale", lambda config: 1.0)
    with pytest.raises(ModelError, match="GraniteForCausalLM: its logits are not"):
        policy.check()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_adapter_computes_in_the_dtype_of_its_base(base: Path, adapter: Path, dtype: torch.dtype) -> None:
    """As it does in training, where DeepSpeed knows one dtype only."""
    for lm in (
        load_frozen(adapter, dtype=dtype),
        load_policy(adapter, LORA, dtype=dtype),
        load_policy(base, LORA, dtype=dtype),
    ):
        assert {parameter.dtype for parameter in lm.parameters()} == {dtype}


@pytest.mark.skipif(not importlib.util.find_spec("bitsandbytes"), reason="bitsandbytes (extra [gpu]) is not installed")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("quantization", ["nf4", "int8"])
def test_an_adapter_on_a_quantised_base_is_trained_exported_and_scored(
    tmp_path: Path, quantization: str, dtype: torch.dtype
) -> None:
    base = write_tiny_model(tmp_path / "base", hidden=64)
    reference = Policy(load_frozen(base, dtype=dtype, quantization=quantization))
    assert not torch.equal(reference(PACK), Policy(load_frozen(base, dtype=dtype))(PACK))
    policy = Policy(load_policy(base, LORA, dtype=dtype, quantization=quantization))
    assert torch.equal(policy(PACK), reference(PACK))
    optimizer = torch.optim.AdamW([p for p in policy.parameters() if p.requires_grad], lr=1e-2)
    for _ in range(5):
        optimizer.zero_grad()
        (-policy(PACK)).mean().backward()
        optimizer.step()
    assert policy(PACK).item() > reference(PACK).item()
    export_model(policy.lm, tmp_path / "adapter", policy.lm.state_dict(), base)
    assert sorted(path.name for path in (tmp_path / "adapter").glob("*.safetensors")) == ["adapter_model.safetensors"]
    exported = Policy(load_frozen(tmp_path / "adapter", dtype=dtype, quantization=quantization))
    assert torch.equal(exported(PACK), policy(PACK))


@pytest.mark.skipif(bool(importlib.util.find_spec("bitsandbytes")), reason="bitsandbytes is installed")
def test_without_bitsandbytes_quantising_names_the_extra(base: Path) -> None:
    with pytest.raises(ModelError, match=r"pip install 'bco-ray\[gpu\]'"):
        load_frozen(base, dtype=torch.float32, quantization="nf4")


def test_a_whole_model_is_not_trained_quantised(base: Path) -> None:
    with pytest.raises(SpecError, match="set model.adapter"):
        load_policy(base, None, dtype=torch.float32, quantization="nf4")


def test_every_file_that_matters_is_in_the_address(tmp_path: Path) -> None:
    model = write_tiny_model(tmp_path / "m")
    before = fingerprint(model)
    (model / "README.md").write_text("a card")
    assert fingerprint(model) == before
    for name in ("pytorch_model.bin", "chat_template.jinja", "config.json"):
        old = fingerprint(model)
        (model / name).write_text((model / name).read_text() + " " if (model / name).exists() else "x")
        assert fingerprint(model) != old, name


def test_torn_weights_are_named(tmp_path: Path) -> None:
    model = write_tiny_model(tmp_path / "m")
    weights = model / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(ModelError, match=r"m: cannot load the model"):
        load_frozen(model, dtype=torch.float32)


def test_a_model_without_one_of_its_tensors_is_refused(tmp_path: Path) -> None:
    weights = write_tiny_model(tmp_path) / "model.safetensors"
    tensors = load_file(weights)
    missing = next(name for name in tensors if "layers.0" in name)
    del tensors[missing]
    save_file(tensors, weights, metadata={"format": "pt"})
    with pytest.raises(ModelError, match=re.escape(missing)):
        load_frozen(tmp_path, dtype=torch.float32)
