"""The DeepSpeed engine computes what plain torch does, whatever is shared out or offloaded; one process, one worker."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import deepspeed
import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.multiprocessing.reductions import StorageWeakRef
from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

from bco_ray.errors import ModelError
from bco_ray.models.checkpointing import checkpoint_activations
from bco_ray.models.loading import load_frozen, load_policy
from bco_ray.models.packing import Pack, lay_out
from bco_ray.models.policy import Policy
from bco_ray.training import deepspeed_engine as ds
from bco_ray.training.engine import Engine, TorchEngine, warmup_schedule
from bco_ray.training.fragments import host_copy
from bco_ray.training.gang import SoloGang

LORA = {"r": 4, "alpha": 8, "target_modules": "all-linear"}
NUMBERS = {"learning_rate": 1e-2, "weight_decay": 0.01, "max_grad_norm": 0.5}
SCHEDULE = warmup_schedule("linear", total_steps=8, warmup_ratio=0.3)
NOTHING_STAYS = {
    "stage3_param_persistence_threshold": 0,
    "stage3_max_live_parameters": 0,
    "stage3_max_reuse_distance": 0,
    "stage3_prefetch_bucket_size": 0,
}
"""Otherwise a model this small is never shared out at all."""

SHAPE = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}


def _pack(random: np.random.Generator, rows: int) -> Pack:
    ids = [random.integers(3, 64, int(random.integers(8, 20))) for _ in range(rows)]
    return lay_out(ids, [np.arange(len(row)) > 3 for row in ids])


_RANDOM = np.random.default_rng(0)
WINDOWS = [[_pack(_RANDOM, 3), _pack(_RANDOM, 2)] for _ in range(5)]
"""Five steps of two micro-batches of unequal size."""

FIRST = WINDOWS[0][0]


@pytest.fixture(scope="module", autouse=True)
def process_group(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A gloo group of this process alone. DeepSpeed must forget it, or it would hand it to another file's tests."""
    os.environ["LOCAL_RANK"] = "0"
    store = tmp_path_factory.mktemp("group") / "store"
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=0, world_size=1)
    ds.prepare_process("cpu")
    yield
    deepspeed.comm.destroy_process_group()
    del os.environ["LOCAL_RANK"]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """`tied`: a Llama whose head is its embedding. `untied`: a Qwen2, with biases and shared key heads."""
    root = tmp_path_factory.mktemp("models")
    torch.manual_seed(0)
    LlamaForCausalLM(LlamaConfig(**SHAPE, tie_word_embeddings=True)).save_pretrained(root / "tied")
    Qwen2ForCausalLM(Qwen2Config(**SHAPE, num_key_value_heads=1, tie_word_embeddings=False)).save_pretrained(
        root / "untied"
    )
    return {"tied": root / "tied", "untied": root / "untied"}


@pytest.fixture
def make_engine() -> Iterator[Callable[..., ds.DeepSpeedEngine]]:
    """Engines with fresh adapters from one seed; all are taken down afterwards."""
    made: list[ds.DeepSpeedEngine] = []

    def make(model: Path, adapter: Any = None, *, checkpointed: bool = False, **changes: Any) -> ds.DeepSpeedEngine:
        config = _config(**changes)
        with ds.sharded_loading(config):
            policy = _policy(model, adapter, bf16=config["bf16"]["enabled"])
        if checkpointed:
            checkpoint_activations(policy.lm)
        made.append(ds.DeepSpeedEngine(policy, config, SCHEDULE))
        return made[-1]

    yield make
    for engine in made:
        engine._engine.destroy()


def _config(*, zero_stage: int = 3, bf16: bool = False, offload: str = "none") -> dict[str, Any]:
    config = ds.deepspeed_config(zero_stage=zero_stage, bf16=bf16, offload=offload, **NUMBERS)
    if zero_stage == 3:
        config["zero_optimization"] |= NOTHING_STAYS
    return config


def _policy(model: Path, adapter: Any = None, *, bf16: bool = False) -> Policy:
    torch.manual_seed(1)
    return Policy(load_policy(model, adapter, dtype=torch.bfloat16 if bf16 else torch.float32))


def _train(engine: Engine, windows: list[list[Pack]]) -> list[float]:
    """The gradient norms of one step per window."""
    norms = []
    for window in windows:
        for pack in window:
            engine.backward(nn.functional.softplus(-0.1 * engine.forward(pack)).sum() * 0.1)
        norms.append(float(engine.step()))
    return norms


def _trained(engine: Engine) -> dict[str, torch.Tensor]:
    """What moves: an adapter, or everything."""
    state = {name: tensor.clone() for name, tensor in engine.export_state().items()}
    return {name: tensor for name, tensor in state.items() if "lora_" in name} or state


def _distance(got: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> float:
    """Relative, over all weights; the same names are required."""
    assert got.keys() == wanted.keys()
    mine, theirs = (torch.cat([state[name].flatten() for name in wanted]).double() for state in (got, wanted))
    return float((mine - theirs).norm() / theirs.norm())


@pytest.mark.parametrize("adapter", [None, LORA], ids=["full", "lora"])
@pytest.mark.parametrize("head", ["tied", "untied"])
@pytest.mark.parametrize(
    ("zero_stage", "offload", "checkpointed"),
    [(1, "none", False), (2, "optimizer", False), (3, "none", False), (3, "optimizer", True), (3, "parameters", False)],
)
def test_five_steps_equal_plain_torch_and_go_on_bit_for_bit_after_a_checkpoint(
    models: dict[str, Path],
    make_engine: Callable[..., ds.DeepSpeedEngine],
    restore: Callable[..., None],
    head: str,
    adapter: Any,
    zero_stage: int,
    offload: str,
    checkpointed: bool,
) -> None:
    plain = TorchEngine(_policy(models[head], adapter), SoloGang(), schedule=SCHEDULE, **NUMBERS)
    wanted = _train(plain, WINDOWS)
    how = {"zero_stage": zero_stage, "offload": offload, "checkpointed": checkpointed}
    engine = make_engine(models[head], adapter, **how)
    norms = _train(engine, WINDOWS[:3])
    saved = host_copy(engine.fragments(), {})
    norms += _train(engine, WINDOWS[3:])
    assert norms == pytest.approx(wanted, rel=1e-5)
    assert _distance(_trained(engine), _trained(plain)) < 1e-5
    resumed = make_engine(models[head], adapter, **how)
    restore(resumed, saved, 3)
    assert _train(resumed, WINDOWS[3:]) == norms[3:]
    assert _distance(_trained(resumed), _trained(engine)) == 0
    assert resumed.learning_rate == engine.learning_rate == plain.learning_rate


@pytest.mark.parametrize("bf16", [False, True], ids=["fp32", "bf16"])
@pytest.mark.parametrize("zero_stage", [1, 2, 3])
def test_before_the_first_step_the_policy_is_the_reference_to_the_last_bit(
    models: dict[str, Path], make_engine: Callable[..., ds.DeepSpeedEngine], zero_stage: int, bf16: bool
) -> None:
    reference = Policy(load_frozen(models["untied"], dtype=torch.bfloat16 if bf16 else torch.float32))
    engine = make_engine(models["untied"], zero_stage=zero_stage, bf16=bf16)
    assert torch.equal(engine.forward(FIRST), reference(FIRST))


@pytest.mark.parametrize("adapter", [None, LORA], ids=["full", "lora"])
@pytest.mark.parametrize("zero_stage", [2, 3])
def test_bfloat16_has_float32_masters_and_float32_sums_of_gradients(
    models: dict[str, Path], make_engine: Callable[..., ds.DeepSpeedEngine], adapter: Any, zero_stage: int
) -> None:
    """The plain engine has both: forty micro-batches give the same gradient norm, and updates too small for bfloat16
    add up alike."""
    windows = [[_pack(np.random.default_rng(7), 1) for _ in range(40)], *WINDOWS[1:]]
    plain = TorchEngine(_policy(models["tied"], adapter, bf16=True), SoloGang(), schedule=SCHEDULE, **NUMBERS)
    engine = make_engine(models["tied"], adapter, zero_stage=zero_stage, bf16=True)
    first, *rest = _train(engine, windows)
    wanted, *others = _train(plain, windows)
    assert first == pytest.approx(wanted, rel=1e-5)
    assert rest == pytest.approx(others, rel=2e-2)
    assert _distance(_trained(engine), _trained(plain)) < 2e-2


@pytest.mark.parametrize(
    ("zero_stage", "offload"),
    [(1, "none"), (1, "optimizer"), (2, "none"), (2, "optimizer"), (3, "none"), (3, "parameters")],
)
@pytest.mark.parametrize("bf16", [False, True], ids=["fp32", "bf16"])
def test_a_step_that_is_not_finite_moves_the_schedule_and_nothing_else(
    models: dict[str, Path],
    make_engine: Callable[..., ds.DeepSpeedEngine],
    zero_stage: int,
    offload: str,
    bf16: bool,
) -> None:
    engine = make_engine(models["tied"], zero_stage=zero_stage, offload=offload, bf16=bf16)
    _train(engine, WINDOWS[:1])
    before = _trained(engine)
    engine.backward(engine.forward(FIRST).sum() * torch.nan)
    assert not np.isfinite(float(engine.step()))
    assert _distance(_trained(engine), before) == 0
    assert engine.learning_rate == pytest.approx(NUMBERS["learning_rate"] * SCHEDULE(2))
    assert np.isfinite(_train(engine, WINDOWS[1:2])).all()
    assert _distance(_trained(engine), before) > 0


@pytest.mark.parametrize("adapter", [None, LORA], ids=["full", "lora"])
def test_the_export_is_the_model_that_was_trained(
    models: dict[str, Path], make_engine: Callable[..., ds.DeepSpeedEngine], tmp_path: Path, adapter: Any
) -> None:
    engine = make_engine(models["tied"], adapter)
    _train(engine, WINDOWS)
    engine._engine.module.lm.save_pretrained(tmp_path, state_dict=engine.export_state())
    exported = Policy(load_frozen(tmp_path, dtype=torch.float32))
    with torch.no_grad():
        assert torch.equal(exported(FIRST), engine.forward(FIRST))


def test_checkpoints_and_exports_of_an_adapter_leave_its_base_out(
    models: dict[str, Path], make_engine: Callable[..., ds.DeepSpeedEngine]
) -> None:
    engine = make_engine(models["untied"], LORA)
    assert all("lora_" in name for name in engine.export_state())
    assert all("lora_" in fragment.name for fragment in engine.fragments())


def test_without_its_adapter_a_policy_in_shares_stays_the_reference(
    models: dict[str, Path], make_engine: Callable[..., ds.DeepSpeedEngine]
) -> None:
    engine = make_engine(models["tied"], LORA)
    reference = Policy(load_frozen(models["tied"], dtype=torch.float32))
    for window in WINDOWS[:3]:
        with torch.no_grad(), engine._engine.module.lm.disable_adapter():
            assert torch.equal(engine.forward(FIRST), reference(FIRST))
        _train(engine, [window])


def test_a_frozen_copy_in_shares_beside_the_policy(
    models: dict[str, Path], make_engine: Callable[..., ds.DeepSpeedEngine]
) -> None:
    engine = make_engine(models["tied"])
    config = _config(offload="optimizer")
    with ds.sharded_loading(config):
        frozen = ds.frozen_engine(Policy(load_frozen(models["tied"], dtype=torch.float32)), config)
    start = frozen(FIRST)
    assert not start.requires_grad
    distances = []
    for window in WINDOWS[:3]:
        logps_B = engine.forward(FIRST)
        assert torch.equal(frozen(FIRST), start)
        distances.append(float((logps_B.detach() - start).abs().max()))
        engine.backward((logps_B - start).sum())
        _train(engine, [window])
    assert distances[0] == 0
    assert all(later > earlier for earlier, later in pairwise(distances))


@pytest.mark.parametrize("adapter", [None, LORA], ids=["full", "lora"])
def test_between_forward_and_backward_no_gathered_weight_is_kept(
    models: dict[str, Path], make_engine: Callable[..., ds.DeepSpeedEngine], adapter: Any
) -> None:
    engine = make_engine(models["untied"], adapter)
    seen = []
    for module in engine._engine.module.modules():
        if type(module) is nn.Linear:
            module.register_forward_hook(lambda m, *_: seen.append(StorageWeakRef(m.weight.untyped_storage())))
    loss = engine.forward(FIRST).sum()
    assert seen
    assert all(storage.expired() for storage in seen)
    engine.backward(loss)


def test_loading_in_shares_leaves_torch_as_it_was(models: dict[str, Path]) -> None:
    linear = nn.functional.linear
    with ds.sharded_loading(_config()):
        shared = load_policy(models["tied"], None, dtype=torch.float32)
    assert all(parameter.numel() == 0 for parameter in shared.parameters())
    assert nn.functional.linear is linear
    assert all(parameter.numel() for parameter in _policy(models["tied"]).parameters())


def test_an_adapter_is_not_merged_in_shares(
    models: dict[str, Path], make_engine: Callable[..., ds.DeepSpeedEngine], tmp_path: Path
) -> None:
    engine = make_engine(models["tied"], LORA)
    engine._engine.module.lm.save_pretrained(tmp_path, state_dict=engine.export_state())
    with ds.sharded_loading(_config()), pytest.raises(ModelError, match="ZeRO 3 cannot merge"):
        load_policy(tmp_path, None, dtype=torch.float32)
    assert _train(make_engine(tmp_path, LORA), WINDOWS[:1])
