"""Values of unknown type."""

from typing import Any

import pytest

from bco_ray.errors import Refused
from bco_ray.feedback.formats.reading import at, decoded, name, scalars, seconds, shape


@pytest.mark.parametrize(
    ("value", "unix"),
    [(1760000000, 1760000000.0), (1760000000.5, 1760000000.5), (1760000000123, 1760000000.123),
     (1760000000123456, 1760000000.123456), (1760000000000000000, 1760000000.0), ("1760000000", 1760000000.0),
     ("2026-05-01T10:00:00Z", 1777629600.0), ("2026-05-01T12:00:00+02:00", 1777629600.0),
     ("2026-05-01 10:00:00.000000000", 1777629600.0), ("2026-05-01 10:00:00 UTC", 1777629600.0),
     (0, 0.0), (None, None), ("", None)],
)  # fmt: skip
def test_times(value: Any, unix: float | None) -> None:
    assert seconds(value) == unix


@pytest.mark.parametrize(
    "value", [True, "yesterday", [], {}, float("nan"), float("inf"), 10**400, "nan", "0001-01-01T00:00:00+23:59x"]
)
def test_what_is_no_time(value: Any) -> None:
    with pytest.raises(Refused) as refused:
        seconds(value)
    assert refused.value.reason == "bad_time"


def test_names() -> None:
    assert [name(value) for value in ("a", 7, " ", True, 1.5, None, {})] == ["a", "7", None, None, None, None, None]


def test_paths_break_off_quietly() -> None:
    assert at({"a": [{"b": 1}]}, "a", -1, "b") == 1
    assert at({"a": [{"b": 1}]}, "a", 1, "b") is None
    assert at("a", "a", 0) is None


def test_json_inside_json() -> None:
    assert decoded('{"a": [1]}') == {"a": [1]}
    assert [decoded(value) for value in ("{broken", "7", 7)] == ["{broken", "7", 7]


def test_metadata_is_small() -> None:
    assert scalars(a=1, b=None, c={"d": 1}, e=False, f="", g=float("nan")) == {"a": 1, "e": False}


def test_shape() -> None:
    assert shape({"a": 1, "b": None}) == "{a: int, b: NoneType}"
