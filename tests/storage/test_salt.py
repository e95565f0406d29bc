"""The secret behind the pseudonyms: one for ever, nobody else's to read, no copies."""

import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from bco_ray.storage.salt import SALT_FILE, SALT_VARIABLE, user_salt


@pytest.fixture(autouse=True)
def _no_salt_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(SALT_VARIABLE, raising=False)


def test_makers_at_once_agree(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        assert len(set(pool.map(lambda _: user_salt(tmp_path / "new"), range(16)))) == 1
    assert stat.S_IMODE((tmp_path / "new" / SALT_FILE).stat().st_mode) == 0o600


def test_what_a_killed_maker_left_is_removed(tmp_path: Path) -> None:
    (tmp_path / f".{SALT_FILE}.0123.tmp").write_text("a secret")
    user_salt(tmp_path)
    assert list(tmp_path.glob("*.tmp")) == list(tmp_path.glob(".*.tmp")) == []
