"""A registration and a promotion killed before each of their file operations: versions are whole, and counted once."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from bco_ray.storage import files
from bco_ray.storage.registry import Registry

REGISTRAR = Path(__file__).parent / "registrar.py"
IMPORTS = ("bco_ray.storage.registry",)
CONTENT = {"config.json": "{}", "model.safetensors": "weights" * 1000, "sub/tokenizer.json": "tokens"}


@pytest.fixture
def source(tmp_path: Path) -> Path:
    for name, text in CONTENT.items():
        files.write_bytes(tmp_path / "trained" / name, text.encode())
    return tmp_path / "trained"


def check_consistent(storage: Path) -> None:
    """What is there at any moment: whole versions 1 to n, aliases that name them, a history that led to the aliases."""
    registry = Registry(storage)
    versions = registry.versions("bot")
    assert versions == list(range(1, len(versions) + 1))
    assert registry.names() == (["bot"] if versions else [])
    for number in versions:
        found = registry.get("bot", number)
        assert {name: (found.directory / name).read_text() for name in CONTENT} == CONTENT
        assert found.lineage["version"] == number
    assert {move["alias"]: move["version"] for move in registry.history("bot")} == registry.aliases("bot")
    assert set(registry.aliases("bot").values()) <= set(versions)


def check_done(storage: Path, runs: list[str]) -> None:
    """Each run has one version, promoted once in its turn, and nothing else lies about."""
    check_consistent(storage)
    registry, numbers = Registry(storage), list(range(1, len(runs) + 1))
    assert [registry.get("bot", number).lineage["run"] for number in registry.versions("bot")] == runs
    assert [(move["was"], move["version"]) for move in registry.history("bot")] == list(
        zip([None, *numbers], numbers, strict=False)
    )
    names = {path.name for path in (storage / "models" / "bot").iterdir()}
    assert names == {".lock", "aliases.json", "history.json", *map(str, numbers)}


@pytest.mark.parametrize("runs", [["a"], ["a", "b"]], ids=["the first", "the second"])
def test_killed_before_each_file_operation(faults: Any, source: Path, tmp_path: Path, runs: list[str]) -> None:
    nursery, storage = faults.nursery(*IMPORTS), faults.root / "storage"
    storage.mkdir()
    for run in runs[:-1]:
        assert nursery.run(REGISTRAR, storage, source, run).status == 0
    shutil.copytree(storage, tmp_path / "start")
    faults.operations()
    assert nursery.run(REGISTRAR, storage, source, runs[-1]).status == 0
    operations = faults.operations()
    for nth in range(1, len(operations) + 1):
        shutil.rmtree(storage)
        shutil.copytree(tmp_path / "start", storage)
        outcome = nursery.run(REGISTRAR, storage, source, runs[-1], kill=faults.before(nth))
        assert (outcome.status, outcome.fired) == (-9, True), operations[nth - 1]
        check_consistent(storage)
        again = nursery.run(REGISTRAR, storage, source, runs[-1])
        assert again.status == 0, f"killed before {operations[nth - 1]}:\n{again.output}"
        check_done(storage, runs)
    faults.report("registry", kills=len(operations), versions_lost=0, versions_doubled=0)


def test_another_run_after_a_killed_one(faults: Any, source: Path, tmp_path: Path) -> None:
    """Whatever a killed run left, the next one of another name gets a whole version and the alias."""
    nursery, storage = faults.nursery(*IMPORTS), faults.root / "storage"
    assert nursery.run(REGISTRAR, storage, source, "a").status == 0
    points = faults.sample(range(1, len(faults.operations()) + 1))
    for nth in points:
        shutil.rmtree(storage)
        assert nursery.run(REGISTRAR, storage, source, "a", kill=faults.before(nth)).fired
        assert nursery.run(REGISTRAR, storage, source, "b").status == 0
        check_consistent(storage)
        newest = Registry(storage).resolve("bot@prod")
        assert (newest.lineage["run"], newest.version) == ("b", Registry(storage).versions("bot")[-1])
    faults.report("registry", kills=len(points), versions_lost=0, versions_doubled=0)


def test_two_at_once_and_one_of_them_killed(faults: Any, source: Path, tmp_path: Path) -> None:
    """The survivor waits for its turn and registers; the killed one's run finishes when it comes again."""
    nursery, storage = faults.nursery(*IMPORTS), faults.root / "storage"
    for nth in faults.sample(range(1, 30)):
        shutil.rmtree(storage, ignore_errors=True)
        faults.arm(faults.before(nth))
        both = [nursery.start(REGISTRAR, storage, source, run) for run in "ab"]
        statuses = [child.wait() for child in both]
        assert -9 in statuses
        check_consistent(storage)
        for run in "ab":
            registered = Registry(storage).register("bot", source, {"run": run})
            assert registered.lineage["run"] == run
        check_consistent(storage)
        assert len(Registry(storage).versions("bot")) == 2
