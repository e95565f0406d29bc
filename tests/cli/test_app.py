"""What a person types, and what it exits with."""

from __future__ import annotations

import getpass
import json
from pathlib import Path
from typing import Any

import pytest

from bco_ray.cli import main
from bco_ray.cli.evaluation_view import lines
from bco_ray.cli.server import what_to_serve
from bco_ray.errors import SpecError
from bco_ray.storage.registry import Registry
from bco_ray.testing.evaluations import made_evaluation
from bco_ray.testing.tiny import write_tiny_model


def bco(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    """The exit code of `bco ARGUMENTS`."""
    monkeypatch.setattr("sys.argv", ["bco", *arguments])
    try:
        main()
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0


@pytest.fixture
def spec(tmp_path: Path) -> Path:
    write_tiny_model(tmp_path / "base")
    (tmp_path / "log.jsonl").write_text('{"prompt": "q", "completion": "a", "label": true}\n')
    path = tmp_path / "spec.yaml"
    path.write_text(
        f"name: bot\nmodel: {{base: {tmp_path}/base}}\ndata: {{feedback: {tmp_path}/log.jsonl}}\n"
        f"output: {{storage: {tmp_path}/runs}}\n"
    )
    return path


@pytest.mark.parametrize(
    ("override", "code", "message"),
    [
        ("training.sed=1", 2, "unknown key training.sed; did you mean training.seed?"),
        ("data.feedback=/nowhere/*.jsonl", 1, "data.feedback: /nowhere/*.jsonl: no such file"),
        ("model.base=/nowhere", 1, "model.base: /nowhere: no model directory"),
        ("model.base=bot@prod", 1, "bot@prod: no such model in"),
        ("data.feedback=feedback", 2, "has no votes yet"),
        ("output.storage=hf://datasets/a/b", 2, "object stores that can be written to are"),
        ("objective={loss: kto, reference: precomputed}", 2, "kto also looks at completions"),
    ],
)
def test_errors_name_the_thing_and_exit_codes_tell_usage_from_work(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    spec: Path,
    override: str,
    code: int,
    message: str,
) -> None:
    assert bco(monkeypatch, "run", str(spec), "--set", override) == code
    assert message in " ".join(capsys.readouterr().err.split())


def test_a_missing_spec_and_an_unknown_command(monkeypatch: pytest.MonkeyPatch) -> None:
    assert bco(monkeypatch, "run", "/nowhere/spec.yaml") == 2
    assert bco(monkeypatch, "rum") == 2


def test_a_model_without_chat_template(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], spec: Path, tmp_path: Path
) -> None:
    bare = write_tiny_model(tmp_path / "bare", chat_template=False)
    assert bco(monkeypatch, "run", str(spec), "--set", f"model.base={bare}") == 1
    assert "has no chat template" in capsys.readouterr().err


def test_models(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "m").mkdir()
    Registry(tmp_path).register("bot", tmp_path / "m", {"run": "a"})
    storage = ["--storage", str(tmp_path)]

    def says(*words: str) -> Any:
        assert bco(monkeypatch, "models", *words, "--json", *storage) == 0
        return json.loads(capsys.readouterr().out)

    assert says("promote", "bot/1") == {"model": "bot/1", "alias": "bot@prod", "was": None}
    assert says("list") == {"bot": {"versions": [1], "aliases": {"prod": 1}, "canary": None}}
    assert says("show", "bot@prod", "--verify")["files"] == "as registered"
    assert says("show", "bot@prod")["lineage"]["run"] == "a"
    Registry(tmp_path).register("bot", tmp_path / "m", {"run": "b"})
    assert says("promote", "bot/2", "--expected", "1")["was"] == 1
    assert bco(monkeypatch, "models", "rollback", "bot", "--expected", "1", *storage) == 1
    assert says("rollback", "bot", "--expected", "2") == {"model": "bot/1", "alias": "bot@prod", "was": 2}
    says("promote", "bot/2", "--alias", "candidate")
    assert says("canary", "bot", "10")["canary"] == {"alias": "candidate", "percent": 10}
    assert says("canary", "bot", "off")["canary"] is None
    says("export", "bot@prod", "--out", str(tmp_path / "out"))
    assert (tmp_path / "out" / "lineage.json").is_file()
    for wrong in (["show", "bot/7"], ["promote", "bot/1", "--expected", "2"], ["rollback", "bot"]):
        assert bco(monkeypatch, "models", *wrong, *storage) == 1
    for wrong in (["canary", "bot", "120"], ["export", "bot/1", "--out", str(tmp_path / "out")]):
        assert bco(monkeypatch, "models", *wrong, *storage) == 2


def test_a_gate_keeps_a_version_from_prod_until_it_is_forced(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "m").mkdir()
    registry = Registry(tmp_path)
    registry.register("bot", tmp_path / "m", {"run": "a", "gate": {"auc": {"min": 0.65}}})
    registry.evaluations("bot").add(1, made_evaluation("bot/1"), {"README.md": b"newer"})
    storage = ["--storage", str(tmp_path)]
    assert bco(monkeypatch, "models", "promote", "bot/1", *storage) == 1
    assert "does not pass its gate: auc: lower bound 0.6 (of 0.7), min is 0.65" in capsys.readouterr().err
    assert bco(monkeypatch, "models", "show", "bot/1", "--json", *storage) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["gate"] == ["auc: lower bound 0.6 (of 0.7), min is 0.65"]
    assert shown["evaluations"] == [str(tmp_path / "models/bot/evaluations/1/1")]
    assert bco(monkeypatch, "models", "promote", "bot/1", "--alias", "candidate", *storage) == 0
    assert bco(monkeypatch, "models", "promote", "bot/1", "--force", *storage) == 0
    assert registry.history("bot")[-1]["forced"] == shown["gate"]
    assert registry.history("bot")[-1]["by"] == getpass.getuser()
    assert bco(monkeypatch, "models", "export", "bot/1", "--out", str(tmp_path / "out"), *storage) == 0
    assert (tmp_path / "out" / "README.md").read_text() == "newer"


def test_an_evaluation_as_people_read_it() -> None:
    found = made_evaluation("bot/2", against="bot/1").model_dump(mode="json")
    shown = list(lines({"model": "bot/2", "evaluation": found, "gate": ["too bad"], "report": "r.html"}))
    for line in ("kl to the reference on its own answers: 5 [3, 7]",
                 "held-out votes: 40 (24 up) on 36 prompts", "  auc: 0.7 [0.6, 0.8]", "  margin: -",
                 "against bot/1 (live):", "  win rate: 0.6 [0.45, 0.74] (8 wins, 3 ties, 5 losses; rule: shorter)",
                 "regression: 1 of 2 passed", "  hours: lacks 'nine'", "gate: not passed", "  too bad"):  # fmt: skip
        assert line in shown
    bare = {**found, "votes": None, "opponents": [], "regression": None, "notes": [],
            "kl_on_policy": {"value": None}}  # fmt: skip
    assert list(lines({"model": "bot/2", "evaluation": bare, "gate": "none", "report": "r.html"})) == [
        "model: bot/2", "gate: none", "report: r.html",
    ]  # fmt: skip


def test_what_to_serve(spec: Path, tmp_path: Path) -> None:
    storage = tmp_path / "runs"
    assert what_to_serve(str(spec), Path("elsewhere")) == ("bot", storage)
    assert what_to_serve("bot@prod", storage) == ("bot@prod", storage)
    with pytest.raises(SpecError, match="registered are: none"):
        what_to_serve("", storage)
    (tmp_path / "m").mkdir()
    Registry(storage).register("bot", tmp_path / "m", {})
    assert what_to_serve("", storage) == ("bot", storage)


def test_env(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert bco(monkeypatch, "env", "--json") == 0
    assert json.loads(capsys.readouterr().out)["packages"]["ray"].startswith("2.60")
