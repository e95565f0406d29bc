"""Versions are written once, aliases move by compare-and-set, references say what they mean."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from bco_ray.errors import ConflictError, ModelError, StorageError
from bco_ray.storage import files
from bco_ray.storage import registry as registries
from bco_ray.storage.registry import EVERYBODYS, Registry


@pytest.fixture
def model(tmp_path: Path) -> Path:
    directory = tmp_path / "trained"
    directory.mkdir()
    (directory / "config.json").write_text("{}")
    return directory


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    return Registry(tmp_path / "storage")


def test_versions_count_up_and_a_run_registers_once(registry: Registry, model: Path) -> None:
    assert registry.register("bot", model, {"run": "a"}).reference == "bot/1"
    assert registry.register("bot", model, {"run": "b"}).reference == "bot/2"
    again = registry.register("bot", model, {"run": "a"})
    assert again.reference == "bot/1"
    assert (again.directory / "config.json").is_file()
    assert again.lineage["run"] == "a"
    assert registry.versions("bot") == [1, 2]
    assert registry.names() == ["bot"]


def test_concurrent_registrations_get_versions_of_their_own(registry: Registry, model: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        versions = list(pool.map(lambda i: registry.register("bot", model, {"run": str(i)}).version, range(16)))
    assert sorted(versions) == list(range(1, 17))


def test_references(registry: Registry, model: Path) -> None:
    for run in "ab":
        registry.register("bot", model, {"run": run})
    assert registry.resolve("bot").version == 2
    registry.promote("bot", 1, expected=None)
    assert registry.resolve("bot").version == 1
    assert registry.resolve("bot@prod").version == 1
    assert registry.resolve("bot/2").version == 2


def test_an_alias_moves_only_from_where_the_mover_saw_it(registry: Registry, model: Path) -> None:
    for run in "ab":
        registry.register("bot", model, {"run": run})
    registry.promote("bot", 1, expected=None)
    with pytest.raises(ConflictError, match="bot@prod is 1, not None"):
        registry.promote("bot", 2, expected=None)
    registry.promote("bot", 2, expected=1)
    assert [move["version"] for move in registry.history("bot")] == [1, 2]


def test_a_move_to_where_it_is_already_is_none(registry: Registry, model: Path) -> None:
    registry.register("bot", model, {})
    registry.promote("bot", 1, expected=None)
    registry.promote("bot", 1, expected=1)
    assert len(registry.history("bot")) == 1


def test_a_move_that_only_the_history_knows_did_not_happen(registry: Registry, model: Path) -> None:
    for run in "abc":
        registry.register("bot", model, {"run": run})
    registry.promote("bot", 1, expected=None)
    aliases = (registry.root / "bot" / "aliases.json").read_bytes()
    registry.promote("bot", 2, expected=1)
    (registry.root / "bot" / "aliases.json").write_bytes(aliases)  # as if killed between the two writes
    assert [move["version"] for move in registry.history("bot")] == [1]
    registry.promote("bot", 3, "candidate", expected=None)
    assert [(m["alias"], m["version"]) for m in registry.history("bot")] == [("prod", 1), ("candidate", 3)]


def test_leftovers_are_no_versions_and_go_with_the_next_registration(registry: Registry, model: Path) -> None:
    leftover = registry.root / "bot" / ".1.0123.tmp"
    leftover.mkdir(parents=True)
    (leftover / "lineage.json").write_text('{"run": "a"}')
    assert registry.names() == []
    assert registry.register("bot", model, {"run": "a"}).version == 1
    assert not leftover.exists()


@pytest.mark.parametrize(
    ("reference", "message"),
    [("bot/9", r"bot/9: no such model version.*Versions: 1"), ("bot@prod", "has no alias prod"),
     ("other", r"no such model.*Registered models: bot"), ("a/b/c", "not a model reference")],
)  # fmt: skip
def test_what_does_not_exist_is_named_with_what_does(
    registry: Registry, model: Path, reference: str, message: str
) -> None:
    registry.register("bot", model, {})
    with pytest.raises(ModelError, match=message):
        registry.resolve(reference)


def test_rolling_back_goes_further_back_each_time(registry: Registry, model: Path) -> None:
    for number in (1, 2, 3):
        registry.register("helper", model, {"run": str(number)})
        registry.promote("helper", number)
    assert registry.rollback("helper") == (2, 3)
    assert registry.rollback("helper") == (1, 2)
    with pytest.raises(ModelError, match="no earlier version"):
        registry.rollback("helper")
    registry.promote("helper", 3)
    assert registry.rollback("helper") == (1, 3)


def test_a_rollback_happens_only_from_where_the_mover_saw_it(registry: Registry, model: Path) -> None:
    for number in (1, 2, 3):
        registry.register("helper", model, {"run": str(number)})
        registry.promote("helper", number)
    assert registry.rollback("helper", expected=3) == (2, 3)
    with pytest.raises(ConflictError, match="helper@prod is 2, not 3"):
        registry.rollback("helper", expected=3)
    with pytest.raises(ConflictError, match="not None"):
        registry.rollback("helper", expected=None)
    assert registry.aliases("helper") == {"prod": 2}


def test_whoever_moves_an_alias_does_not_wait_for_ever(
    registry: Registry, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for run in "ab":
        registry.register("bot", model, {"run": run})
        registry.promote("bot", registry.versions("bot")[-1])
    monkeypatch.setattr(registries, "_MOVE_SECONDS", 0.05)
    with files.locked(registry.root / "bot" / ".lock"):
        for move in (lambda: registry.promote("bot", 1), lambda: registry.rollback("bot"),
                     lambda: registry.set_canary("bot", 0)):  # fmt: skip
            with pytest.raises(StorageError, match="busy"):
                move()
    assert registry.rollback("bot") == (1, 2)


def test_a_model_is_read_before_others_wait(registry: Registry, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    registry.register("bot", model, {"run": "a"})
    digests = registries._digests

    def moving(source: Path) -> dict[str, str]:
        registry.promote("bot", 1)
        return digests(source)

    monkeypatch.setattr(registries, "_MOVE_SECONDS", 0.05)
    monkeypatch.setattr(registries, "_digests", moving)
    assert registry.register("bot", model, {"run": "b"}).version == 2
    assert registry.verify("bot", 2)


def test_a_canary_needs_a_candidate_and_counts_as_a_change(registry: Registry, model: Path) -> None:
    registry.register("helper", model, {})
    with pytest.raises(ModelError, match="candidate"):
        registry.set_canary("helper", 10)
    registry.promote("helper", 1, "candidate")
    before = registry.state("helper").generation
    registry.set_canary("helper", 10)
    state = registry.state("helper")
    assert state.canary is not None
    assert (state.canary.percent, state.generation) == (10, before + 1)
    registry.set_canary("helper", 0)
    assert registry.state("helper").canary is None


@pytest.mark.parametrize("how", ["changed", "missing", "was added"])
def test_what_happened_to_a_versions_files_is_seen(registry: Registry, model: Path, how: str) -> None:
    version = registry.register("helper", model, {})
    assert registry.verify("helper", 1)
    file = next(path for path in version.directory.iterdir() if path.name != "lineage.json")
    if how == "changed":
        file.write_bytes(file.read_bytes() + b" ")
    elif how == "missing":
        file.unlink()
    else:
        (version.directory / "more.json").write_text("{}")
    with pytest.raises(ModelError, match=how):
        registry.verify("helper", 1)


def test_a_version_from_before_digests_cannot_be_verified(registry: Registry, model: Path) -> None:
    version = registry.register("helper", model, {})
    lineage = files.read_json(version.directory / "lineage.json")
    files.write_json(version.directory / "lineage.json", {k: v for k, v in lineage.items() if k != "files"})
    assert not registry.verify("helper", 1)


def test_a_name_is_of_the_project_that_registered_it_first(tmp_path: Path) -> None:
    made, registry = tmp_path / "made", Registry(tmp_path)
    made.mkdir()
    registry.register("bot", made, {"run": "a", "project": "acme"})
    with pytest.raises(ModelError, match="bot: another project has registered a model of this name meanwhile"):
        registry.register("bot", made, {"run": "b", "project": "other"})
    for run, project in (("c", "acme"), ("d", None)):
        registry.register("bot", made, {"run": run, "project": project})
    assert registry.versions("bot") == [1, 2, 3]
    for run, project in (("a", EVERYBODYS), ("b", "acme")):
        registry.register("free", made, {"run": run, "project": project})
    assert registry.versions("free") == [1, 2]
