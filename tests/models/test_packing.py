"""Rows laid end to end: what is in a pack, and that no row can tell whether it has company."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

from bco_ray.errors import ModelError
from bco_ray.models.packing import LEAST_TOKENS, fill_packs, lay_out
from bco_ray.models.policy import Policy
from bco_ray.objective import completion_logps

SHAPE: dict[str, Any] = {"vocab_size": 320, "hidden_size": 64, "num_hidden_layers": 2, "intermediate_size": 96,
         "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 256,
         "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}  # fmt: skip
WINDOWED = {**SHAPE, "sliding_window": 8}

MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", SHAPE),
    "llama-tied": ("Llama", {**SHAPE, "tie_word_embeddings": True}),
    "qwen2": ("Qwen2", {**WINDOWED, "use_sliding_window": True, "max_window_layers": 1}),
    "qwen3": ("Qwen3", {**SHAPE, "head_dim": 16}),
    "mistral": ("Mistral", WINDOWED),
    "gemma": ("Gemma", {**SHAPE, "head_dim": 16}),
    "gemma2": ("Gemma2", {**WINDOWED, "head_dim": 16, "query_pre_attn_scalar": 16,
                          "final_logit_softcapping": 5.0, "attn_logit_softcapping": 3.0}),
    "phi3": ("Phi3", SHAPE),
    "granite": ("Granite", {**SHAPE, "logits_scaling": 8.0}),
    "olmo2": ("Olmo2", SHAPE),
}  # fmt: skip

IDS = [np.random.default_rng(n).integers(3, 320, n) for n in (5, 23, 40, 2, 11)]
MASKS = [np.arange(len(row)) >= len(row) // 3 for row in IDS]


def make_model(name: str) -> Any:
    family, shape = MODELS[name]
    torch.manual_seed(0)
    model = getattr(transformers, f"{family}ForCausalLM")(getattr(transformers, f"{family}Config")(**shape)).eval()
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.2)
    return model


def plain_logps(model: Any) -> torch.Tensor:
    """Each row by itself through the model's own attention and its full logits."""
    rows = [(torch.from_numpy(ids)[None], torch.from_numpy(mask)[None]) for ids, mask in zip(IDS, MASKS, strict=True)]
    return torch.cat([completion_logps(model(ids, use_cache=False).logits, ids, mask) for ids, mask in rows])


def gradients(model: Any, logps_B: torch.Tensor) -> torch.Tensor:
    model.zero_grad()
    (logps_B * torch.linspace(-1, 2, len(logps_B))).sum().backward()
    return torch.cat([p.grad.flatten() for p in model.parameters()])


@pytest.mark.parametrize("name", MODELS)
def test_packed_rows_equal_rows_alone_in_value_and_gradient(name: str) -> None:
    model = make_model(name)
    wanted = plain_logps(model)
    wanted_gradient = gradients(model, wanted)
    policy = Policy(model)
    policy.check()
    got = policy(lay_out(IDS, MASKS))
    torch.testing.assert_close(got, wanted, rtol=1e-6, atol=3e-5)
    gradient = gradients(model, got)
    assert float((gradient - wanted_gradient).norm() / wanted_gradient.norm()) < 1e-5


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", ["llama", "mistral", "gemma2"])
def test_a_row_has_the_same_bits_in_any_company(name: str, dtype: torch.dtype) -> None:
    """Otherwise the reward at step 0 would be noise instead of 0."""
    policy = Policy(make_model(name).to(dtype))
    together = policy(lay_out(IDS, MASKS))
    alone = torch.cat([policy(lay_out([ids], [mask])) for ids, mask in zip(IDS, MASKS, strict=True)])
    backwards = policy(lay_out(IDS[::-1], MASKS[::-1])).flip(0)
    assert torch.equal(together, alone)
    assert torch.equal(together, backwards)


def test_prompt_embeddings_are_means_over_prompts() -> None:
    policy = Policy(make_model("llama"))
    logps_B, embedding_BD = policy.score(lay_out(IDS, MASKS))
    assert torch.equal(logps_B, policy(lay_out(IDS, MASKS)))
    hidden = policy.lm.model(torch.from_numpy(IDS[2])[None], use_cache=False).last_hidden_state[0]
    torch.testing.assert_close(embedding_BD[2], hidden[: len(IDS[2]) // 3].mean(0))


def test_attention_with_sinks_is_refused() -> None:
    model = transformers.GptOssForCausalLM(
        transformers.GptOssConfig(
            **{**SHAPE, "num_local_experts": 2, "head_dim": 16, "layer_types": ["full_attention"] * 2}
        )
    ).eval()
    with pytest.raises(ModelError, match="cannot be trained yet"):
        Policy(model).check()


def test_what_a_pack_says_of_its_rows() -> None:
    pack = lay_out([np.array([7, 8, 9]), np.array([5, 6])], [np.array([0, 1, 1]), np.array([1, 1])])
    assert pack.rows == 2
    assert pack.lengths == (3, 2, LEAST_TOKENS - 5), "the last one is the filler"
    assert pack.prompt_lengths == (1, 1)
    assert pack.bounds.tolist() == [0, 3, 5, LEAST_TOKENS]
    assert pack.position_ids_N[:6].tolist() == [0, 1, 2, 0, 1, 0]
    scored = pack.row_of_token_K < 2
    assert pack.source_K[scored].tolist() == [0, 1, 3]
    assert pack.target_K[scored].tolist() == [8, 9, 6], "token 0 has no prediction"
    assert pack.row_of_token_K[scored].tolist() == [0, 0, 1]


def test_a_row_without_completion_scores_zero() -> None:
    policy = Policy(make_model("llama"))
    pack = lay_out([IDS[0], IDS[1]], [np.zeros(5, bool), MASKS[1]])
    assert policy(pack)[0] == 0
    assert pack.prompt_lengths[0] == 5


@settings(derandomize=True, deadline=None, max_examples=80)
@given(st.lists(st.integers(1, 300), max_size=60), st.integers(10, 400), st.integers(1, 5))
def test_packs_hold_everything_within_the_budget(lengths: list[int], budget: int, multiple: int) -> None:
    packs = fill_packs(lengths, budget, multiple_of=multiple)
    assert sorted(i for pack in packs for i in pack) == list(range(len(lengths)))
    assert len(packs) % multiple == 0
    assert len(packs) < max(1, len(lengths)) + multiple, "no more than a row in each, but for the rounding up"
    assert all(len(pack) <= 1 or sum(lengths[i] for i in pack) <= budget for pack in packs)
    assert packs == fill_packs(lengths, budget, multiple_of=multiple)
