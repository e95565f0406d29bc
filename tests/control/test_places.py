"""What a request may name, and what not, however it is spelled."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from bco_ray.control.places import Places
from bco_ray.errors import SpecError


@pytest.fixture
def places(tmp_path: Path) -> Places:
    (tmp_path / "logs").mkdir()
    (tmp_path / "link").symlink_to("/etc")
    return Places([f"{tmp_path}/logs", "s3://bucket/votes"], {"bot"}.__contains__)


def allowed(places: Places, place: str, use: Any) -> bool:
    try:
        places.check("field", place, use)
    except SpecError:
        return False
    return True


@pytest.mark.parametrize(
    ("place", "use"),
    [
        ("bot", "model"), ("bot/3", "model"), ("bot@prod", "model"),
        ("feedback", "log"), ("feedback:", "log"), ("feedback:7", "log"), ("feedback:4..7", "log"),
        ("{here}/logs/a.jsonl", "log"), ("{here}/logs/**/*.jsonl", "log"), ("{here}/logs", "model"),
        ("{here}/logs/x.json", "file"), ("{here}/logs/out", "write"), ("s3://bucket/votes/*.jsonl", "log"),
        ("s3://bucket/votes", "write"),
    ],
)  # fmt: skip
def test_allowed(places: Places, tmp_path: Path, place: str, use: Any) -> None:
    assert allowed(places, place.format(here=tmp_path), use)


@pytest.mark.parametrize(
    ("place", "use"),
    [
        ("other", "model"), ("other/1", "model"), ("org/model", "model"), ("bot/../x", "model"), ("bot", "log"),
        ("feedback", "write"), ("feedback:7", "file"), ("feedback:x", "log"),
        ("{here}/logs/**/../../files/*", "log"), ("{here}/logs/../files", "log"), ("{here}/logs*", "log"),
        ("{here}/logs/*", "write"), ("{here}/logs/?", "file"), ("{here}/logsx", "log"), ("{here}/link/passwd", "log"),
        ("{here}", "log"), ("/etc/passwd", "file"), ("~root", "log"), ("logs", "log"), ("\x00", "log"),
        ("s3://bucket/votes-of-others/a", "log"), ("s3://bucket/votes/../x", "log"), ("s3://other/votes", "write"),
        ("file://{here}/files", "log"),
    ],
)  # fmt: skip
def test_refused(places: Places, tmp_path: Path, place: str, use: Any) -> None:
    assert not allowed(places, place.replace("{here}", str(tmp_path)), use)


@pytest.mark.parametrize(
    ("place", "use"),
    [
        ("{here}/bco/files/x/content.jsonl", "log"), ("{here}/bco/files/*/content.jsonl", "log"),
        ("{here}/*/files/*/content.jsonl", "log"), ("{here}/b*", "log"), ("{here}/bco/models", "write"),
        ("{here}/bco", "write"), ("{here}", "log"), ("s3://bucket/bco/records/x", "log"), ("s3://bucket/*/x", "log"),
    ],
)  # fmt: skip
def test_what_is_above_the_servers_own_files_does_not_open_them(tmp_path: Path, place: str, use: Any) -> None:
    (tmp_path / "bco").mkdir()
    own = [f"{tmp_path}/bco", "s3://bucket/bco"]
    assert not allowed(
        Places([str(tmp_path), "s3://bucket"], lambda _: False, own=own), place.format(here=tmp_path), use
    )
    places = Places([str(tmp_path), "s3://bucket", f"{tmp_path}/bco/logs"], lambda _: False, own=own)
    assert allowed(places, f"{tmp_path}/logs/*.jsonl", "log")
    assert allowed(places, f"{tmp_path}/bco/logs/*.jsonl", "log")
    assert allowed(places, "s3://bucket/votes/*.jsonl", "log")


def test_the_directory_that_is_served_may_be_trained_and_nothing_in_it(tmp_path: Path) -> None:
    places = Places([], lambda _: False, served=tmp_path)
    assert allowed(places, str(tmp_path), "model")
    assert not allowed(places, str(tmp_path), "log")
    for place in (f"{tmp_path}/x", f"{tmp_path}/x/..", str(tmp_path.parent), "."):
        assert not allowed(places, place, "model")


def test_everything_as_long_as_nobody_is_kept_out() -> None:
    assert allowed(Places([], lambda _: False, lambda: True), "/etc/passwd", "write")
