"""A demo replaces what a demo made, and nothing else."""

from pathlib import Path

import pytest

from bco_ray.demo.loop import MARK, _empty
from bco_ray.errors import SpecError


def test_only_a_former_demo_is_replaced(tmp_path: Path) -> None:
    models = tmp_path / "models"
    (models / "base").mkdir(parents=True)
    (models / "base" / "precious.bin").write_text("years of work")
    with pytest.raises(SpecError, match="not empty and not an earlier demo"):
        _empty(models)
    assert (models / "base" / "precious.bin").is_file()
    demo = _empty(tmp_path / "demo")
    (demo / "summary.json").write_text("{}")
    assert [p.name for p in _empty(demo).iterdir()] == [MARK]
