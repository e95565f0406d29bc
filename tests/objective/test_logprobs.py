"""Log-probabilities: spec section 5, property 15. Shapes as in the module."""

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from bco_ray.objective import chunked_logps, completion_logps, scored_tokens, sum_by_row, token_logps

gentle = settings(derandomize=True, deadline=None, max_examples=25)
V, D = 11, 5


def batch(seed: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits_BTV = torch.randn(3, 7, V, generator=generator, dtype=dtype)
    ids_BT = torch.randint(V, (3, 7), generator=generator)
    return logits_BTV, ids_BT, torch.rand(3, 7, generator=generator) < 0.5


def head(seed: int, tokens: int = 9, dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    hidden, weight, bias = (
        torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()
        for shape in ((tokens, D), (V, D), (V,))
    )
    return {"hidden": hidden, "weight": weight, "bias": bias, "targets": torch.randint(V, (tokens,))}


def plain(parts: dict[str, Tensor], *, logit_scale: float = 1.0, softcap: float | None = None) -> Tensor:
    logits = F.linear(parts["hidden"], parts["weight"], parts["bias"]).to(
        torch.promote_types(parts["hidden"].dtype, torch.float32)
    )
    logits = logits * logit_scale
    return token_logps(logits if softcap is None else softcap * torch.tanh(logits / softcap), parts["targets"])


def chunked(parts: dict[str, Tensor], **more: Any) -> Tensor:
    return chunked_logps(parts["hidden"], parts["weight"], parts["targets"], head_bias_V=parts["bias"], **more)


def gradients(logps_N: Tensor, parts: dict[str, Tensor]) -> tuple[Tensor, ...]:
    upstream_N = torch.linspace(-2, 1, len(logps_N), dtype=logps_N.dtype)
    return torch.autograd.grad((logps_N * upstream_N).sum(), [parts[name] for name in ("hidden", "weight", "bias")])


@gentle
@given(st.integers(0, 1000), st.sampled_from([math.nan, math.inf, 1e9, -3.0]))
def test_only_completion_positions_count(seed: int, rubbish: float) -> None:
    logits_BTV, ids_BT, mask_BT = batch(seed)
    unscored_BT = torch.cat([~mask_BT[:, 1:], torch.ones(3, 1, dtype=torch.bool)], dim=1)
    changed = torch.where(unscored_BT[..., None], rubbish, logits_BTV).requires_grad_()
    logps_B = completion_logps(changed, torch.where(mask_BT, ids_BT, -100), mask_BT)
    torch.testing.assert_close(logps_B, completion_logps(logits_BTV, ids_BT, mask_BT))
    (grad_BTV,) = torch.autograd.grad(logps_B.sum(), changed)
    assert torch.isfinite(grad_BTV).all()
    assert (grad_BTV[unscored_BT] == 0).all()


def test_a_row_without_completion_is_zero_and_token_0_never_counts() -> None:
    logits_BTV, ids_BT, mask_BT = batch(1)
    mask_BT[0] = False
    mask_BT[0, 0] = True
    assert completion_logps(logits_BTV, ids_BT, mask_BT)[0] == 0


def test_scored_tokens_pairs_each_token_with_what_predicts_it() -> None:
    states_BT1 = torch.arange(10.0).view(2, 5, 1)
    ids_BT = torch.arange(100, 110).view(2, 5)
    mask_BT = torch.tensor([[0, 0, 1, 1, 0], [1, 1, 0, 0, 1]])
    states_N1, targets_N, row_of_token_N = scored_tokens(states_BT1, ids_BT, mask_BT)
    assert states_N1[:, 0].tolist() == [1, 2, 5, 8]
    assert targets_N.tolist() == [102, 103, 106, 109]
    assert row_of_token_N.tolist() == [0, 0, 1, 1]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
def test_sums_are_float32_whatever_the_logits_are(dtype: torch.dtype) -> None:
    logits_BTV, ids_BT, mask_BT = batch(2, torch.float32)
    logits_BTV = logits_BTV.to(dtype)
    logps_B = completion_logps(logits_BTV, ids_BT, mask_BT)
    assert logps_B.dtype == torch.float32
    torch.testing.assert_close(
        logps_B.double(), completion_logps(logits_BTV.double(), ids_BT, mask_BT), rtol=0, atol=1e-5
    )


def test_a_long_row_loses_nothing_in_its_sum() -> None:
    token_logps_N = torch.full((5000,), -10.1)
    logps_B = sum_by_row(token_logps_N, torch.zeros(5000, dtype=torch.long), 2)
    assert logps_B.tolist() == [torch.tensor(-10.1).double().mul(5000).float().item(), 0]


def test_sum_by_row_sends_each_token_its_rows_gradient() -> None:
    token_logps_N = torch.randn(4, requires_grad=True)
    logps_B = sum_by_row(token_logps_N, torch.tensor([0, 2, 2, 1]), 3)
    (grad_N,) = torch.autograd.grad((logps_B * torch.tensor([1.0, 2.0, 3.0])).sum(), token_logps_N)
    assert grad_N.tolist() == [1, 3, 3, 2]


@gentle
@given(
    st.integers(0, 1000),
    st.sampled_from([1, 7, 9, 1000]),
    st.sampled_from([{}, {"logit_scale": 0.3}, {"softcap": 2.0}, {"logit_scale": 1.7, "softcap": 1.5}]),
)
def test_chunked_head_equals_the_plain_one(seed: int, chunk_size: int, more: dict[str, float]) -> None:
    parts = head(seed)
    expected_N, logps_N = plain(parts, **more), chunked(parts, chunk_size=chunk_size, **more)
    torch.testing.assert_close(logps_N, expected_N, rtol=1e-12, atol=1e-12)
    for ours, theirs in zip(gradients(logps_N, parts), gradients(expected_N, parts), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 4e-2)], ids=str)
def test_chunked_head_in_the_models_dtype(dtype: torch.dtype, tolerance: float) -> None:
    parts = head(3, tokens=40, dtype=dtype)
    expected_N, logps_N = plain(parts), chunked(parts, chunk_size=7)
    assert logps_N.dtype == torch.float32
    torch.testing.assert_close(logps_N, expected_N, rtol=1e-5, atol=1e-5)
    for ours, theirs in zip(gradients(logps_N, parts), gradients(expected_N, parts), strict=True):
        assert ours.dtype == dtype
        torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance)


def test_weight_gradient_in_bfloat16_does_not_depend_on_the_chunks() -> None:
    parts = head(4, tokens=80, dtype=torch.bfloat16)
    exact = gradients(chunked({**parts}, chunk_size=80), parts)[1].float()
    ours = gradients(chunked(parts, chunk_size=1), parts)[1].float()
    assert ((ours - exact).norm() / exact.norm()).item() < 5e-3


def test_gradcheck() -> None:
    parts = head(5, tokens=4)
    inputs = (parts["hidden"], parts["weight"], parts["bias"])
    assert torch.autograd.gradcheck(
        lambda h, w, b: chunked_logps(
            h, w, parts["targets"], chunk_size=3, head_bias_V=b, logit_scale=0.7, softcap=2.0
        ),
        inputs,
    )


def test_a_frozen_head_gets_no_gradient_and_no_tokens_are_fine() -> None:
    parts = head(6, tokens=0)
    weight = parts["weight"].detach()
    logps_N = chunked_logps(parts["hidden"], weight, parts["targets"], chunk_size=4)
    logps_N.sum().backward()
    assert logps_N.shape == (0,)
    assert parts["hidden"].grad is not None
    assert weight.grad is None
    (weight_grad,) = torch.autograd.grad(chunked(parts, chunk_size=4).sum(), parts["weight"])
    assert (weight_grad == 0).all()


def test_float32_master_weights_get_float32_gradients_under_a_bfloat16_body() -> None:
    parts = head(7, dtype=torch.float32)
    logps_N = chunked_logps(parts["hidden"].bfloat16(), parts["weight"], parts["targets"], chunk_size=4)
    (weight_grad,) = torch.autograd.grad(logps_N.sum(), parts["weight"])
    assert weight_grad.dtype == torch.float32


def test_autocast_changes_nothing() -> None:
    parts = head(8, dtype=torch.float32)
    expected_N = chunked(parts, chunk_size=4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(chunked(parts, chunk_size=4), expected_N)


def test_backward_keeps_no_logits() -> None:
    parts = head(9, tokens=64)
    saved: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: saved.append(x) or x, lambda x: x):
        chunked(parts, chunk_size=8)
    assert max(x.numel() for x in saved) < 64 * V


def test_a_chunk_has_at_least_one_token() -> None:
    parts = head(10)
    with pytest.raises(ValueError, match="chunk_size"):
        chunked(parts, chunk_size=0)
