"""Interrupted equals uninterrupted, in one process; `tests/faults` kills several."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from bco_ray.errors import TrainingError
from bco_ray.objective import SourceOffsets
from bco_ray.training.setup import TrainSetup


class StoppedError(Exception):
    """Raised by a hook: the process dies here."""


def stop_after(step: int) -> Callable[[int], None]:
    def hook(done: int) -> None:
        if done == step:
            raise StoppedError

    return hook


def assert_identical(got: Any, wanted: Any) -> None:
    keys = ("step", "loss", "delta", "grad_norm", "rewards/chosen", "learning_rate")
    assert [[m[k] for k in keys] for m in got.metrics] == [[m[k] for k in keys] for m in wanted.metrics]
    for name, tensor in wanted.weights.items():
        assert torch.equal(got.weights[name], tensor), name
    assert got.outcome == wanted.outcome


KINDS: dict[str, dict[str, Any]] = {
    "full": {},
    "lora": {"adapter": {"r": 4, "alpha": 8, "target_modules": "all-linear"}},
    "bf16": {"bf16": True},
    "by source": {"offsets": SourceOffsets({"web": 0.4, "app": -0.7}, other=0.2)},
}


@pytest.mark.parametrize("kind", KINDS)
def test_resume_is_bit_exact(make_setup: Callable[..., TrainSetup], run_here: Callable[..., Any], kind: str) -> None:
    whole = run_here(make_setup(f"whole-{kind}", **KINDS[kind], epochs=2, rows_per_step=16))
    setup = make_setup(f"stopped-{kind}", **KINDS[kind], epochs=2, rows_per_step=16, checkpoint_every=3)
    for step in (4, 10):  # in the first epoch, and across the epoch boundary; both between checkpoints
        with pytest.raises(StoppedError):
            run_here(setup, after_step=stop_after(step))
    assert_identical(run_here(setup), whole)


def test_checkpoint_of_another_run_is_refused(
    make_setup: Callable[..., TrainSetup], run_here: Callable[..., Any], storage: Any
) -> None:
    setup = make_setup("mine", checkpoint_every=3, identity={"run": "mine"})
    with pytest.raises(StoppedError):
        run_here(setup, after_step=stop_after(4))
    storage.wait_for(setup.run, "checkpoint", 3)
    other = make_setup("other", identity={"run": "other"})
    shutil.copytree(Path(setup.run) / "checkpoints", Path(other.run) / "checkpoints")
    with pytest.raises(TrainingError, match=r"made with run = mine, this run has other"):
        run_here(other)


def test_old_checkpoints_are_deleted_and_manifest_names_the_state(
    make_setup: Callable[..., TrainSetup], run_here: Callable[..., Any], storage: Any
) -> None:
    setup = make_setup("kept", checkpoint_every=3, checkpoint_keep=2)

    def written(step: int) -> None:
        if (step + 1) % 3 == 0:
            storage.wait_for(setup.run, "checkpoint", step + 1)

    run_here(setup, after_step=written)
    left = sorted(d.name for d in (Path(setup.run) / "checkpoints").iterdir())
    assert left == ["00000018", "00000020"]
    manifest = json.loads((Path(setup.run) / "checkpoints" / "00000020" / "manifest.json").read_text())
    assert manifest["state"]["next_step"] == 20
    assert manifest["state"]["shift"]["rows_seen"] == 120
