"""What a step sends beside gradients: counted, by window, model, workers, micro-batches and loss."""

from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from bco_ray.objective import LOSSES, LossSums, ShiftTensor
from bco_ray.storage.scored import load_scored
from bco_ray.testing.scored import write_scored
from bco_ray.testing.tiny import write_tiny_model
from bco_ray.training.batches import Share, window_batches
from bco_ray.training.building import build
from bco_ray.training.plan import Plan
from bco_ray.training.setup import TrainSetup
from bco_ray.training.shard_reader import ShardReader
from bco_ray.training.step import Objective, train_window

DOUBLE = 8
SUMS = len(fields(LossSums))


@dataclass
class CountingGang:
    """Worker 0 of `size`, whose others hold zeros; keeps the bytes of every sum."""

    size: int = 1
    rank: int = 0
    sent: list[int] = field(default_factory=list)

    def sum(self, tensor: Tensor) -> Tensor:
        self.sent.append(tensor.numel() * tensor.element_size())
        return tensor.clone()

    def barrier(self) -> None:
        """Nobody to wait for."""


@pytest.fixture(scope="module")
def larger(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """(model, scored): sixteen times the weights of a layer, other rows."""
    root = tmp_path_factory.mktemp("larger")
    model = write_tiny_model(root / "model", hidden=128, layers=3)
    write_scored(root / "scored", model, chosen=30, rejected=30, shards=2)
    return model, root / "scored"


@dataclass(frozen=True)
class Sent:
    """By one step: `sums` of the step itself, `gradients` of the engine; and how many weights there are to train."""

    sums: list[int]
    gradients: list[int]
    trained: int


@pytest.fixture
def step(make_setup: Callable[..., TrainSetup], request: pytest.FixtureRequest) -> Callable[..., Sent]:
    """A real step of worker 0, counted."""
    numbers = iter(range(1000))

    def take(
        rows: int, *, workers: int = 1, tokens: int = 60, world: tuple[Path, Path] | None = None, loss: str = "bco"
    ) -> Sent:
        setup = make_setup(f"sent-{request.node.name}-{next(numbers)}".replace("/", "-"))
        if world:
            setup = replace(setup, model=str(world[0]), scored=str(world[1]))
        kind = LOSSES[loss]
        objective = Objective(beta=0.1, desirable_weight=kind.gain, undesirable_weight=kind.gain, loss=loss)
        setup = replace(setup, objective=objective, reference="live" if kind.mismatched else "precomputed")
        reader = ShardReader(Path(setup.scored), load_scored(Path(setup.scored)), units=kind.units, cached_shards=3)
        plan = next(Plan(reader.counts, rows // (2 if kind.units == "pairs" else 1), 1, seed=3).windows())
        window = window_batches(reader, plan, Share(0, workers, tokens), mismatched=kind.mismatched)
        ours, engines = CountingGang(workers), CountingGang(workers)
        trainee = build(setup, engines, total_steps=20)
        shift = ShiftTensor.of(setup.initial_shift)
        train_window(trainee.engine, ours, trainee.reference, window, shift, objective)
        trained = sum(p.numel() for p in trainee.policy.parameters() if p.requires_grad)
        return Sent(ours.sent, engines.sent, trained)

    return take


def test_one_sum_of_23_numbers_and_one_per_row_of_the_window(step: Callable[..., Sent]) -> None:
    """A reward per row is what the step's AUC is made of: so the window shows, 8 bytes a row, and nothing else does."""
    assert SUMS == 22
    for rows in (6, 12, 48):
        assert step(rows).sums == [DOUBLE * (SUMS + rows + 1)]


def test_neither_model_nor_workers_nor_micro_batches_nor_log_show(
    step: Callable[..., Sent], larger: tuple[Path, Path]
) -> None:
    usual = step(12)
    for workers in (1, 2, 8, 64):
        assert step(12, workers=workers).sums == usual.sums
    assert step(12, tokens=1).sums == usual.sums
    other = step(12, world=larger)
    assert other.trained > 4 * usual.trained
    assert other.sums == usual.sums


@pytest.mark.parametrize("loss", sorted(LOSSES))
def test_every_loss_sends_the_same_and_kto_two_numbers_more(step: Callable[..., Sent], loss: str) -> None:
    before = [2 * DOUBLE] if LOSSES[loss].mismatched else []
    assert step(12, loss=loss).sums == [*before, DOUBLE * (SUMS + 12 + 1)]


def test_four_of_them_are_all_that_the_shift_is_given(
    step: Callable[..., Sent], monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[torch.Size] = []
    plain = ShiftTensor.advance

    def noting(shift: ShiftTensor, sums: Tensor, *, unless: Tensor) -> ShiftTensor:
        given.append(sums.shape)
        return plain(shift, sums, unless=unless)

    monkeypatch.setattr(ShiftTensor, "advance", noting)
    for rows in (6, 48):
        step(rows)
    assert given == [torch.Size([4])] * 2


def test_gradients_are_what_grows_with_the_model(step: Callable[..., Sent], larger: tuple[Path, Path]) -> None:
    """ZeRO 0: four bytes a weight and step, whatever the window; nothing where there is nobody to send to."""
    assert step(12).gradients == []
    for world in (None, larger):
        for rows in (6, 24):
            sent = step(rows, workers=2, world=world)
            assert sum(sent.gradients) == 4 * sent.trained
