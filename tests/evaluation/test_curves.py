"""The curves of a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.image import imread

from bco_ray.evaluation.curves import PANELS, draw_curves, series, smoothed

KEYS = [key for _, lines in PANELS for key in lines.values() if key != "grad_share/rejected"]


def rows(count: int, **values: Any) -> list[dict[str, Any]]:
    return [{"step": n, **dict.fromkeys(KEYS, 0.5), **values} for n in range(count)]


@pytest.mark.parametrize("count", [0, 5, 5000])
def test_any_length_is_drawn(tmp_path: Path, count: int) -> None:
    draw_curves(rows(count), tmp_path / "c.png", title="t")
    assert imread(tmp_path / "c.png").std() > 0


def test_a_metric_that_is_null_or_unknown_is_an_empty_panel(tmp_path: Path) -> None:
    draw_curves(rows(5, **dict.fromkeys(KEYS)), tmp_path / "null.png", title="t")
    draw_curves([{"step": n} for n in range(5)], tmp_path / "unknown.png", title="t")
    assert np.array_equal(imread(tmp_path / "null.png"), imread(tmp_path / "unknown.png"))


def test_the_rejected_share_is_the_rest() -> None:
    metrics: list[dict[str, float | None]] = [{"grad_share/chosen": 0.25}, {"grad_share/chosen": None}]
    np.testing.assert_array_equal(series(metrics, "grad_share/rejected"), [0.75, np.nan])


def test_smoothing_keeps_a_line_and_fills_single_absences() -> None:
    """400 steps: means over 21."""
    line = np.arange(400.0)
    np.testing.assert_allclose(smoothed(line)[10:-10], line[10:-10])
    np.testing.assert_allclose(smoothed(np.full(400, 3.0)), 3.0)
    alternating = np.where(np.arange(400) % 2, np.nan, 7.0)
    np.testing.assert_allclose(smoothed(alternating), 7.0)


def test_smoothing_does_not_bridge_a_gap() -> None:
    values = np.ones(400)
    values[100:200] = np.nan
    result = smoothed(values)
    assert np.isnan(result[106:194]).all()
    assert (result[:100] == 1).all()
    assert (result[200:] == 1).all()


def test_a_short_run_is_not_smoothed() -> None:
    values = np.array([3.0, np.nan, 1.0, 2.0])
    np.testing.assert_array_equal(smoothed(values), values)
