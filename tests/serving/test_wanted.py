"""What a followed name means, read from the registry as it is."""

from __future__ import annotations

from pathlib import Path

import pytest

from bco_ray.errors import ModelError
from bco_ray.serving.app import Gateway, application
from bco_ray.serving.args import ServeArgs
from bco_ray.serving.versions.wanted import wanted
from bco_ray.storage.registry import Registry
from bco_ray.testing.evaluations import made_evaluation


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    (tmp_path / "m").mkdir()
    registry = Registry(tmp_path)
    registry.register("bot", tmp_path / "m", {"run": "a", "gate": {"auc": {"min": 0.5}}})
    return registry


def test_a_shut_gate_keeps_a_version_from_everybody_who_did_not_ask_for_it(registry: Registry, tmp_path: Path) -> None:
    args = ServeArgs(follow=["bot"], storage=tmp_path)
    assert wanted(args).names == {}
    with pytest.raises(ModelError, match="bot: no version has passed its gate yet; evaluate one"):
        application(args, Gateway)
    registry.promote("bot", 1, "candidate")
    assert wanted(args).names == {"bot@candidate": "bot/1"}
    registry.evaluations("bot").add(1, made_evaluation("bot/1"), {})
    assert wanted(args).names == {"bot": "bot/1", "bot@candidate": "bot/1"}


def test_it_is_no_bar_to_other_names(registry: Registry, tmp_path: Path) -> None:
    registry.register("other", tmp_path / "m", {"run": "b"})
    assert wanted(ServeArgs(follow=["bot", "other"], storage=tmp_path)).names == {"other": "other/1"}
