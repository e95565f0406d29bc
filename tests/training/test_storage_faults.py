"""Whole trainings on storage that fails, waits, tears and rots: the steps are those of an undisturbed run."""

from __future__ import annotations

import errno
import shutil
import threading
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from safetensors import SafetensorError

from bco_ray.errors import StorageError
from bco_ray.storage.checkpoints import CheckpointStore, DamagedError
from bco_ray.testing.faulty_store import Fault
from bco_ray.training import checkpoint, loop
from bco_ray.training.attempt import Attempt, StaleAttemptError
from bco_ray.training.background import Backoff
from bco_ray.training.gang import SoloGang
from bco_ray.training.setup import TrainSetup

Hook = Callable[[int], None]
LAST = 20
NEVER_AGAIN = Backoff(3600, 3600)
"""A checkpoint that fails waits for a newer one."""


class KilledError(Exception):
    """Raised by a hook: the process dies here."""


def assert_identical(got: Any, wanted: Any) -> None:
    keys = ("step", "loss", "delta", "grad_norm", "rewards/chosen", "learning_rate")
    assert [[m[k] for k in keys] for m in got.metrics] == [[m[k] for k in keys] for m in wanted.metrics]
    for name, tensor in wanted.weights.items():
        assert torch.equal(got.weights[name], tensor), name
    assert got.outcome == wanted.outcome


@pytest.fixture(scope="module")
def whole(make_setup: Callable[..., TrainSetup], run_here: Callable[..., Any]) -> Any:
    """Undisturbed, and without checkpoints in between."""
    return run_here(make_setup("faults-whole"))


@pytest.fixture
def new_setup(make_setup: Callable[..., TrainSetup], request: pytest.FixtureRequest) -> Callable[[], TrainSetup]:
    """A checkpoint after every third step, in a directory named after the test."""
    name = "".join(c if c.isalnum() else "-" for c in request.node.name)
    return lambda: make_setup(name, checkpoint_every=3)


def each_settled(storage: Any, setup: TrainSetup, then: Hook = lambda _: None) -> Hook:
    """Waits after every checkpoint's step until it counts, or could not be written."""

    def hook(step: int) -> None:
        if (step + 1) % 3 == 0:
            kinds = ("checkpoint", "checkpoint_failed", "checkpoint_skipped")
            assert storage.until(lambda: any(e["step"] == step + 1 for e in storage.events(setup.run, *kinds)))
        then(step)

    return hook


def kill_after(killed: int) -> Hook:
    def hook(step: int) -> None:
        if step == killed:
            raise KilledError

    return hook


def whole_ones(checkpoints: CheckpointStore) -> list[int]:
    """Steps of those that are not damaged."""
    found = []
    for step in checkpoints.steps():
        with suppress(DamagedError), ExitStack() as opened:
            manifest = checkpoints.manifest(step)
            for name in manifest.shards:
                opened.enter_context(checkpoints.verified(manifest, name))
            found.append(step)
    return found


def steps_of(events: list[dict[str, Any]]) -> list[int]:
    return sorted({event["step"] for event in events})


def test_storage_that_is_down_for_a_while(
    new_setup: Callable[[], TrainSetup], run_here: Callable[..., Any], storage: Any, whole: Any
) -> None:
    """A newer checkpoint takes the place of one that cannot be written; nothing is left of that one."""
    setup, storage.backoff = new_setup(), NEVER_AGAIN
    storage.store.add(Fault("put", "*/manifest.json", times=None, code=errno.EIO))

    def hook(step: int) -> None:
        if step == 8:
            storage.store.heal()

    assert_identical(run_here(setup, after_step=each_settled(storage, setup, hook)), whole)
    assert steps_of(storage.events(setup.run, "checkpoint_failed")) == [3, 6, 9]
    assert steps_of(storage.events(setup.run, "checkpoint")) == [12, 15, 18, LAST]
    failure = storage.events(setup.run, "checkpoint_failed")[0]
    assert "Input/output error" in failure["error"]
    assert failure["again_in_seconds"] > 0
    assert storage.checkpoints(setup.run).steps() == [18, LAST]
    assert {name.partition("/")[0] for name in storage.store.sizes()} == {"00000018", "00000020"}


def test_storage_that_is_down_for_good(
    new_setup: Callable[[], TrainSetup],
    run_here: Callable[..., Any],
    storage: Any,
    whole: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    setup, storage.backoff = new_setup(), NEVER_AGAIN
    monkeypatch.setattr(loop, "AFTER_EXPORT_SECONDS", 0.1)
    storage.store.add(Fault("put", times=None))
    assert_identical(run_here(setup, after_step=each_settled(storage, setup)), whole)
    assert steps_of(storage.events(setup.run, "checkpoint_failed")) == [3, 6, 9, 12, 15, 18, LAST]
    assert steps_of(storage.events(setup.run, "checkpoint_missing")) == [LAST]
    assert storage.checkpoints(setup.run).steps() == []


def test_slow_storage_is_not_waited_for(
    new_setup: Callable[[], TrainSetup], run_here: Callable[..., Any], storage: Any, whole: Any
) -> None:
    setup, go = new_setup(), threading.Event()
    storage.store.add(Fault("put", code=None, held=go))

    def hook(step: int) -> None:
        if step == 10:
            go.set()
            storage.wait_for(setup.run, "checkpoint", 3)
        if step == 11:
            storage.wait_for(setup.run, "checkpoint", 12)

    assert_identical(run_here(setup, after_step=hook), whole)
    skipped = storage.events(setup.run, "checkpoint_skipped")
    assert [(event["step"], event["being_written"]) for event in skipped[:2]] == [(6, 3), (9, 3)]
    assert steps_of(storage.events(setup.run, "checkpoint"))[:2] == [3, 12]
    assert storage.checkpoints(setup.run).steps()[-1] == LAST


def test_what_is_old_and_cannot_be_deleted_stays(
    new_setup: Callable[[], TrainSetup], run_here: Callable[..., Any], storage: Any, whole: Any
) -> None:
    setup = new_setup()
    storage.store.add(Fault("delete", times=None, code=errno.EACCES))
    assert_identical(run_here(setup, after_step=each_settled(storage, setup)), whole)
    assert storage.events(setup.run, "checkpoint_failed") == []
    assert storage.checkpoints(setup.run).steps() == [3, 6, 9, 12, 15, 18, LAST]


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_storage_on_which_many_operations_fail(
    new_setup: Callable[[], TrainSetup], run_here: Callable[..., Any], storage: Any, whole: Any, seed: int
) -> None:
    """Some of them leave half a file, half a manifest too, and the run is killed twice on the way."""
    setup = new_setup()
    storage.store._random.seed(seed)
    storage.store.add(Fault("put", times=None, chance=0.2, torn=True))
    storage.store.add(Fault(times=None, chance=0.2, code=errno.EIO))
    for step in (7, 13):
        with pytest.raises(KilledError):
            run_here(setup, after_step=each_settled(storage, setup, kill_after(step)))
    assert_identical(run_here(setup), whole)
    storage.store.heal()
    assert LAST in whole_ones(storage.checkpoints(setup.run))


def test_a_full_disk_in_the_words_of_safetensors(
    new_setup: Callable[[], TrainSetup], run_here: Callable[..., Any], storage: Any, whole: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    setup, save, full = new_setup(), checkpoint.save_file, ["first", "second"]

    def failing(*arguments: Any) -> None:
        if full:
            full.pop()
            raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")
        save(*arguments)

    monkeypatch.setattr(checkpoint, "save_file", failing)
    hook = lambda step: storage.wait_for(setup.run, "checkpoint", 3) if step == 2 else None  # noqa: E731
    assert_identical(run_here(setup, after_step=hook), whole)
    assert [event["step"] for event in storage.events(setup.run, "checkpoint_failed")] == [3, 3]


def test_a_model_that_cannot_be_written_is_tried_again(
    new_setup: Callable[[], TrainSetup], run_here: Callable[..., Any], storage: Any, whole: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    setup, export, full = new_setup(), loop.loading.export_model, ["first", "second"]

    def failing(lm: Any, directory: Path, *arguments: Any) -> None:
        export(lm, directory, *arguments)
        if full:
            (directory / full.pop()).write_text("half")
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(loop.loading, "export_model", failing)
    trained = run_here(setup)
    assert_identical(trained, whole)
    assert len(storage.events(setup.run, "export_failed")) == 2
    assert {path.name for path in (trained.directory / "model").iterdir()} == {
        path.name for path in (whole.directory / "model").iterdir()
    }
    assert not list(trained.directory.glob(".model*"))


def test_one_that_was_given_up_for_dead_commits_nothing(
    new_setup: Callable[[], TrainSetup], run_here: Callable[..., Any], storage: Any
) -> None:
    setup = new_setup()

    def hook(step: int) -> None:
        if step == 4:
            storage.wait_for(setup.run, "checkpoint", 3)
            Attempt.begin(Path(setup.run), SoloGang(), storage.checkpoints(setup.run))

    with pytest.raises(StaleAttemptError, match="attempt 2 has taken over from attempt 1"):
        run_here(setup, after_step=hook)
    assert storage.checkpoints(setup.run).steps() == [3]
    assert not (Path(setup.run) / "model").exists()


class TestResume:
    """From a run that was killed after step 10, its checkpoints at 6 and 9 whole."""

    @pytest.fixture(scope="class")
    def killed(self, make_setup: Callable[..., TrainSetup], run_here: Callable[..., Any]) -> Path:
        setup = make_setup("faults-killed", checkpoint_every=3)
        manifests = Path(setup.run) / "checkpoints"

        def hook(step: int) -> None:
            while (step + 1) % 3 == 0 and not (manifests / f"{step + 1:08d}" / "manifest.json").exists():
                threading.Event().wait(0.002)
            kill_after(10)(step)

        with pytest.raises(KilledError):
            run_here(setup, after_step=hook)
        while (manifests / "00000003").exists():
            threading.Event().wait(0.002)
        return Path(setup.run)

    @pytest.fixture
    def again(self, killed: Path, new_setup: Callable[[], TrainSetup]) -> TrainSetup:
        """The same in a directory of its own."""
        setup = new_setup()
        shutil.copytree(killed, setup.run, dirs_exist_ok=True)
        return setup

    DAMAGES: ClassVar[dict[str, Callable[[bytes], bytes | None]]] = {
        "one bit": lambda data: data[: len(data) // 2] + bytes([data[len(data) // 2] ^ 1]) + data[len(data) // 2 + 1 :],
        "last byte": lambda data: data[:-1] + bytes([data[-1] ^ 255]),
        "truncated": lambda data: data[: len(data) // 2],
        "empty": lambda _: b"",
        "zeros": lambda data: bytes(len(data)),
        "longer": lambda data: data + b"}",
        "gone": lambda _: None,
    }
    FILES = ("manifest.json", "a001-rank-00000-of-00001.safetensors", "a001-rank-00000-of-00001.json")

    def damage(self, run: str, step: int, file: str, how: str) -> None:
        path = Path(run) / "checkpoints" / f"{step:08d}" / file
        damaged = self.DAMAGES[how](path.read_bytes())
        if damaged is None:
            path.unlink()
        else:
            path.write_bytes(damaged)

    def starts(self, storage: Any, run: str) -> list[int]:
        return [event["step"] for event in storage.events(run, "training")]

    def test_every_file_is_one_of_those_damaged_below(self, again: TrainSetup) -> None:
        newest = Path(again.run) / "checkpoints" / "00000009"
        assert {path.name for path in newest.iterdir()} == set(self.FILES)

    @pytest.mark.parametrize("how", DAMAGES)
    @pytest.mark.parametrize("file", FILES)
    def test_damage_is_noticed_and_the_one_before_is_used(
        self, again: TrainSetup, run_here: Callable[..., Any], storage: Any, whole: Any, file: str, how: str
    ) -> None:
        """But for a worker's mark, which is of no use once the manifest is there."""
        self.damage(again.run, 9, file, how)
        assert_identical(run_here(again), whole)
        started = 9 if file.endswith("00001.json") else 6
        assert self.starts(storage, again.run) == [0, started]
        counted = (file, how) != ("manifest.json", "gone")
        assert steps_of(storage.events(again.run, "checkpoint_damaged")) == ([9] if counted and started == 6 else [])

    def test_when_all_are_damaged_it_starts_at_the_beginning(
        self, again: TrainSetup, run_here: Callable[..., Any], storage: Any, whole: Any
    ) -> None:
        self.damage(again.run, 9, "manifest.json", "one bit")
        self.damage(again.run, 6, self.FILES[1], "truncated")
        assert_identical(run_here(again), whole)
        assert self.starts(storage, again.run) == [0, 0]
        assert steps_of(storage.events(again.run, "checkpoint_damaged")) == [6, 9]

    @pytest.mark.parametrize("operation", ["sizes", "get", "local"])
    def test_what_cannot_be_read_is_no_damage(
        self, again: TrainSetup, run_here: Callable[..., Any], storage: Any, whole: Any, operation: str
    ) -> None:
        """An older one would throw steps away: this waits, and then says so."""
        before = storage.checkpoints(again.run).store.sizes()
        storage.store.add(Fault(operation, times=None, code=errno.EIO))
        storage.patience_seconds = 0.1
        with pytest.raises(StorageError, match="cannot be (read|listed); the workers' logs say why"):
            run_here(again)
        assert storage.checkpoints(again.run).store.sizes() == before
        assert storage.events(again.run, "checkpoints_unreadable")
        storage.store.heal()
        assert_identical(run_here(again), whole)
        assert self.starts(storage, again.run) == [0, 9]

    @pytest.mark.parametrize("operation", ["sizes", "get", "local"])
    def test_what_cannot_be_read_for_a_while_is_waited_for(
        self, again: TrainSetup, run_here: Callable[..., Any], storage: Any, whole: Any, operation: str
    ) -> None:
        storage.store.add(Fault(operation, times=3, code=errno.EIO))
        assert_identical(run_here(again), whole)
        assert self.starts(storage, again.run) == [0, 9]
        assert len(storage.events(again.run, "checkpoints_unreadable")) == 3
