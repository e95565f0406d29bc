"""The state as named pieces: cut by one engine or number of workers, put together by another."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import product
from pathlib import Path
from typing import Any

import deepspeed
import numpy as np
import pytest
import torch
import torch.distributed as dist
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor, nn

from bco_ray.models.loading import load_policy
from bco_ray.models.packing import Pack, lay_out
from bco_ray.models.policy import Policy
from bco_ray.storage.checkpoints import DamagedError
from bco_ray.training import deepspeed_engine as ds
from bco_ray.training.engine import Engine, TorchEngine, warmup_schedule
from bco_ray.training.fragments import Fragment, SavedState, host_copy, share
from bco_ray.training.gang import Gang, SoloGang


@given(st.lists(st.integers(0, 50), max_size=12), st.integers(1, 9))
def test_shares_cover_every_element_once(sizes: list[int], workers: int) -> None:
    owners = [[0] * size for size in sizes]
    amounts = []
    for rank in range(workers):
        cuts = share(sizes, rank, workers)
        amounts.append(sum(end - start for _, start, end in cuts))
        for number, start, end in cuts:
            assert start < end
            for element in range(start, end):
                owners[number][element] += 1
    assert all(count == 1 for owner in owners for count in owner)
    assert max(amounts) - min(amounts) <= 1


class Files:
    """Files of pieces, and which of them were opened."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.names: list[str] = []
        self.opened: list[str] = []
        self.closed: list[str] = []

    def add(self, *fragments: Fragment, **extras: Tensor) -> None:
        name = f"{len(self.names)}.safetensors"
        save_file(host_copy(fragments, extras), self.directory / name)
        self.names.append(name)

    @contextmanager
    def open(self, name: str) -> Iterator[Path]:
        self.opened.append(name)
        yield self.directory / name
        self.closed.append(name)

    def saved(self) -> SavedState:
        return SavedState(self.names, self.open)


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return Files(tmp_path)


def piece(name: str, start: int, end: int, **numbers: Any) -> Fragment:
    """Elements of a parameter whose weights count up from 0 and whose `exp_avg` counts down."""
    weights = torch.arange(start, end, dtype=torch.float32)
    return Fragment(name, start, {"weight": weights, "exp_avg": -weights}, numbers)


class TestSavedState:
    def test_ranges_are_put_together_across_files(self, files: Files) -> None:
        """In whatever order the files come."""
        for start, end in ((7, 10), (0, 3), (5, 7), (3, 5)):
            files.add(piece("w", start, end))
        with files.saved() as saved:
            for start, end in product(range(11), repeat=2):
                if start < end <= 10:
                    wanted = torch.arange(start, end, dtype=torch.float32)
                    assert torch.equal(saved.read("w", "weight", start, end - start), wanted)
                    assert torch.equal(saved.read("w", "exp_avg", start, end - start), -wanted)
        assert files.closed == ["3.safetensors", "2.safetensors", "1.safetensors", "0.safetensors"]

    def test_pieces_may_lie_over_each_other(self, files: Files) -> None:
        for start, end in ((0, 6), (2, 4), (4, 10), (0, 10)):
            files.add(piece("w", start, end))
        with files.saved() as saved:
            saved.open(4)
            for start, end in product(range(11), repeat=2):
                if start < end <= 10:
                    assert saved.read("w", "weight", start, end - start).tolist() == list(range(start, end))

    def test_files_are_opened_when_they_are_needed(self, files: Files) -> None:
        files.add(piece("a", 0, 4), piece("b", 0, 2))
        files.add(piece("b", 2, 4))
        files.add(piece("c", 0, 4))
        with files.saved() as saved:
            assert files.opened == []
            saved.read("a", "weight", 0, 4)
            saved.read("b", "weight", 0, 2)
            assert saved.kinds("b") == {"weight", "exp_avg"}
            assert files.opened == files.names[:1]
            saved.read("b", "exp_avg", 1, 2)
            assert files.opened == files.names[:2]
            saved.open(1)
            assert files.opened == files.names[:2]
            saved.open(3)
            assert files.opened == files.names

    @pytest.mark.parametrize(
        ("name", "kind", "start", "numel"),
        [("w", "weight", 3, 2), ("w", "weight", 8, 3), ("w", "exp_avg_sq", 0, 1), ("nobody", "weight", 0, 1)],
    )
    def test_what_is_in_no_file_is_damage(self, files: Files, name: str, kind: str, start: int, numel: int) -> None:
        files.add(piece("w", 0, 4))
        files.add(piece("w", 5, 10))
        with files.saved() as saved, pytest.raises(DamagedError, match=rf"{name}: {kind} from {start} to .* no file"):
            saved.read(name, kind, start, numel)

    def test_a_parameter_that_nobody_wrote_is_damage(self, files: Files) -> None:
        files.add(piece("w", 0, 4))
        for ask in (SavedState.kinds, SavedState.numbers):
            with files.saved() as saved, pytest.raises(DamagedError, match="nobody: in no file"):
                ask(saved, "nobody")

    def test_numbers_keep_their_kind(self, files: Files) -> None:
        files.add(piece("w", 0, 4, step=torch.tensor(3.0), count=5), piece("v", 0, 1))
        with files.saved() as saved:
            numbers = saved.numbers("w")
            assert torch.equal(torch.as_tensor(numbers["step"]), torch.tensor(3.0))
            assert numbers["count"] == 5
            assert isinstance(numbers["count"], int)
            assert saved.numbers("v") == {}

    def test_an_extra_comes_from_the_first_file_that_has_it(self, files: Files) -> None:
        files.add(piece("w", 0, 4), rng=torch.tensor([1, 2], dtype=torch.uint8))
        files.add(rng=torch.tensor([3, 4], dtype=torch.uint8))
        with files.saved() as saved:
            assert saved.extra("rng") is None
            saved.open(2)
            assert torch.as_tensor(saved.extra("rng")).tolist() == [1, 2]

    def test_a_copy_does_not_follow_the_training(self) -> None:
        live, number = torch.ones(4), torch.tensor(1.0)
        copied = host_copy([Fragment("w", 0, {"weight": live}, {"step": number})], {"rng": live})
        live.zero_()
        number.zero_()
        assert all(float(tensor.sum()) in (1.0, 4.0) for tensor in copied.values())


LORA = {"r": 4, "alpha": 8, "target_modules": "all-linear"}
NUMBERS = {"learning_rate": 1e-2, "weight_decay": 0.01, "max_grad_norm": 0.5}
SCHEDULE = warmup_schedule("linear", total_steps=8, warmup_ratio=0.3)
RANDOM = np.random.default_rng(0)
WINDOWS = [
    lay_out([RANDOM.integers(3, 200, length) for length in lengths], [np.arange(length) > 3 for length in lengths])
    for lengths in RANDOM.integers(8, 20, (5, 3)).tolist()
]
BEFORE = 3


class Copies:
    """As many workers as one likes, all with the same rows: the mean of their gradients is the gradient, to the bit."""

    def __init__(self, rank: int, size: int) -> None:
        self.rank, self.size = rank, size

    def sum(self, tensor: Tensor) -> Tensor:
        return tensor.double() * self.size

    def barrier(self) -> None: ...


def policy(model: Path, adapter: Any, *, bf16: bool = False) -> Policy:
    torch.manual_seed(1)
    return Policy(load_policy(model, adapter, dtype=torch.bfloat16 if bf16 else torch.float32))


def plain(model: Path, adapter: Any, gang: Gang | None = None, *, bf16: bool = False) -> TorchEngine:
    return TorchEngine(policy(model, adapter, bf16=bf16), gang or SoloGang(), schedule=SCHEDULE, **NUMBERS)


def trained(engine: Engine, windows: list[Pack]) -> list[float]:
    """The gradient norms of one step per window."""
    norms = []
    for pack in windows:
        engine.backward(nn.functional.softplus(-0.1 * engine.forward(pack)).sum() * 0.1)
        norms.append(float(engine.step()))
    return norms


def weights(engine: Engine) -> Tensor:
    """What moves, laid end to end."""
    state = engine.export_state()
    names = sorted(name for name in state if "lora_" in name) or sorted(state)
    return torch.cat([state[name].detach().flatten().double() for name in names])


@pytest.mark.parametrize("adapter", [None, LORA], ids=["full", "lora"])
@pytest.mark.parametrize("workers", [1, 2, 3])
def test_shares_of_plain_torch_become_one_bit_for_bit(
    world: tuple[Path, Path], restore: Callable[..., None], adapter: Any, workers: int
) -> None:
    wanted = plain(world[0], adapter)
    norms = trained(wanted, WINDOWS)
    shares = []
    for rank in range(workers):
        engine = plain(world[0], adapter, Copies(rank, workers))
        trained(engine, WINDOWS[:BEFORE])
        shares.append(host_copy(engine.fragments(), {}))
    sizes = [sum(tensor.numel() for tensor in share.values()) for share in shares]
    assert max(sizes) - min(sizes) < 20 + max(sizes) // 10
    resumed = plain(world[0], adapter)
    restore(resumed, shares, BEFORE)
    assert trained(resumed, WINDOWS[BEFORE:]) == norms[BEFORE:]
    assert torch.equal(weights(resumed), weights(wanted))


@pytest.fixture(scope="module")
def process_group(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A gloo group of this process alone. DeepSpeed must forget it, or it would hand it to another file's tests."""
    os.environ["LOCAL_RANK"] = "0"
    store = tmp_path_factory.mktemp("group") / "store"
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=0, world_size=1)
    ds.prepare_process("cpu")
    yield
    deepspeed.comm.destroy_process_group()
    del os.environ["LOCAL_RANK"]


@pytest.fixture
def make_engine(process_group: None, world: tuple[Path, Path]) -> Iterator[Callable[..., Engine]]:
    """Stage 0 is plain torch."""
    made: list[Engine] = []

    def make(stage: int, adapter: Any, *, bf16: bool = False) -> Engine:
        if stage == 0:
            return plain(world[0], adapter, bf16=bf16)
        config = ds.deepspeed_config(zero_stage=stage, bf16=bf16, offload="none", **NUMBERS)
        if stage == 3:
            config["zero_optimization"] |= {"stage3_param_persistence_threshold": 0}  # or nothing would be cut up
        with ds.sharded_loading(config):
            lm = policy(world[0], adapter, bf16=bf16)
        made.append(ds.DeepSpeedEngine(lm, config, SCHEDULE))
        return made[-1]

    yield make
    for engine in made:
        engine.close()


STAGES = [(old, new) for old, new in product(range(4), repeat=2) if old != new]


@pytest.mark.parametrize("adapter", [None, LORA], ids=["full", "lora"])
@pytest.mark.parametrize(("old", "new"), STAGES)
def test_another_stage_goes_on_with_the_same_steps(
    make_engine: Callable[..., Engine], restore: Callable[..., None], adapter: Any, old: int, new: int
) -> None:
    """The same stage goes on bit for bit: `test_deepspeed.py`."""
    first = make_engine(old, adapter)
    trained(first, WINDOWS[:BEFORE])
    saved = host_copy(first.fragments(), {})
    wanted = trained(first, WINDOWS[BEFORE:])
    second = make_engine(new, adapter)
    restore(second, saved, BEFORE)
    assert second.learning_rate == pytest.approx(NUMBERS["learning_rate"] * SCHEDULE(BEFORE))
    assert trained(second, WINDOWS[BEFORE:]) == pytest.approx(wanted, rel=1e-5)
    distance = weights(second) - weights(first)
    assert float(distance.norm() / weights(first).norm()) < 1e-5


@pytest.mark.parametrize(("old", "new"), [(0, 2), (0, 3), (2, 0), (3, 1)])
def test_bfloat16_takes_its_float32_masters_along(
    make_engine: Callable[..., Engine], restore: Callable[..., None], old: int, new: int
) -> None:
    """To the bit at first; then updates round as the two engines do."""
    first = make_engine(old, None, bf16=True)
    trained(first, WINDOWS[:BEFORE])
    saved = host_copy(first.fragments(), {})
    second = make_engine(new, None, bf16=True)
    restore(second, saved, BEFORE)
    again = host_copy(second.fragments(), {})
    assert again.keys() == saved.keys()
    assert all(torch.equal(again[key], tensor) for key, tensor in saved.items())
    assert torch.equal(weights(second), weights(first))
    wanted = trained(first, WINDOWS[BEFORE:])
    assert trained(second, WINDOWS[BEFORE:]) == pytest.approx(wanted, rel=2e-2)


def test_steps_that_changed_nothing_leave_no_trace(
    make_engine: Callable[..., Engine], restore: Callable[..., None]
) -> None:
    """Before its first update an optimizer has nothing to keep; a checkpoint is made all the same."""
    for old, new in ((0, 0), (0, 2), (2, 0)):
        first = make_engine(old, None)
        first.backward(first.forward(WINDOWS[0]).sum() * torch.nan)
        assert not np.isfinite(float(first.step()))
        saved = host_copy(first.fragments(), {})
        wanted = trained(first, WINDOWS)
        second = make_engine(new, None)
        restore(second, saved, 1)
        assert trained(second, WINDOWS) == pytest.approx(wanted, rel=1e-5), (old, new)
