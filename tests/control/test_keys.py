"""Keys: made, found, limited to what their role may, and over when they are over, on both databases."""

from __future__ import annotations

import hmac
import json
import logging
import re
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import Any, get_args

import pytest
import sqlalchemy as sa
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from bco_ray.control.audit import AuditLog
from bco_ray.control.keys import ROLES, ApiKey, KeyStore, Limits, may
from bco_ray.errors import SpecError, StorageError
from bco_ray.storage.database import open_database, reading
from bco_ray.storage.feedback_rows import NotFoundError
from bco_ray.storage.job_tables import api_keys, metadata
from bco_ray.web.access import Action

PEPPER = b"a pepper of the tests"
UNLIMITED = Limits()


class Clock:
    """Time that passes when told to."""

    def __init__(self) -> None:
        self.now = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture(params=["sqlite", "postgresql"])
def engine(request: pytest.FixtureRequest, tmp_path: Path) -> sa.Engine:
    url = request.getfixturevalue("postgresql") if request.param == "postgresql" else None
    return open_database(tmp_path, url)


@pytest.fixture
def store(engine: sa.Engine, clock: Clock) -> KeyStore:
    return KeyStore(engine, PEPPER, clock=clock)


def make(store: KeyStore, role: str = "submit", project: str = "bots", **more: Any) -> tuple[ApiKey, str]:
    return store.create(project, "a robot's", role, **{"limits": UNLIMITED, "actor": "cli:me", **more})


def everything_in(engine: sa.Engine) -> str:
    with reading(engine) as connection:
        return str([connection.execute(sa.select(table)).all() for table in metadata.sorted_tables])


def test_a_key_is_found_by_its_text_and_by_nothing_else(store: KeyStore) -> None:
    limits = Limits(requests_per_minute=60, running_jobs=2)
    key, text = make(store, limits=limits, expires_at=2e9)
    assert re.fullmatch(r"sk-bco-[a-z0-9]{8}_[A-Za-z0-9_-]{43}", text)
    assert store.find(text) == key == store.get(key.id)
    assert (key.project, key.role, key.limits, key.requests_per_minute) == ("bots", "submit", limits, 60)
    other = "b" if text[-20] == "a" else "a"
    near = (text[:-1], f"{text[:-20]}{other}{text[-19:]}", text.upper(), f" {text}")
    for wrong in (*near, *(text + more for more in ("a", "\n", "\ud800"))):
        assert store.find(wrong) is None


def test_another_pepper_finds_nothing(engine: sa.Engine, store: KeyStore) -> None:
    _, text = make(store)
    assert KeyStore(engine, b"another pepper there").find(text) is None


def test_whose_keys_are_listed(store: KeyStore, clock: Clock) -> None:
    keys = []
    for project in ("bots", "cats", "bots"):
        keys.append(make(store, project=project)[0])
        clock.now += 1
    assert store.list() == keys
    assert store.list("bots") == [keys[0], keys[2]]
    assert store.list("dogs") == []


def test_an_expired_key_is_not_found(store: KeyStore, clock: Clock) -> None:
    key, text = make(store, expires_at=clock.now + 10)
    clock.now += 9.9
    assert store.find(text) == key
    clock.now += 0.1
    assert store.find(text) is None
    assert store.list() == [key]


def test_a_revoked_key_is_not_found_and_revoked_once(engine: sa.Engine, store: KeyStore, clock: Clock) -> None:
    (key, text), (_, others) = make(store), make(store)
    revoked = store.revoke(key.id, "root")
    assert revoked.revoked_at == clock.now
    clock.now += 1
    assert store.revoke(key.shown, "somebody") == revoked
    assert store.find(text) is None
    assert store.find(others) is not None
    assert [entry.action for entry in AuditLog(engine).list()[0]] == ["key.revoke", "key.create", "key.create"]


def test_many_may_revoke_at_once(engine: sa.Engine, store: KeyStore) -> None:
    key, _ = make(store)
    with ThreadPoolExecutor(4) as pool:
        assert len({k.revoked_at for k in pool.map(lambda n: store.revoke(key.id, f"k{n}"), range(8))}) == 1
    assert [entry.action for entry in AuditLog(engine).list()[0]] == ["key.revoke", "key.create"]


def test_what_is_done_to_keys_is_in_the_audit_log(engine: sa.Engine, store: KeyStore) -> None:
    key, _ = make(store, "infer", limits=Limits(queued_jobs=3), expires_at=2e9)
    store.revoke(key.id, "k1")
    revoked, created = AuditLog(engine).list("bots")[0]
    limits = {**Limits().model_dump(), "queued_jobs": 3}
    assert (created.actor, created.action, created.target) == ("cli:me", "key.create", key.id)
    assert created.facts == {"name": "a robot's", "role": "infer", "limits": limits, "expires_at": 2e9}
    assert (revoked.actor, revoked.action, revoked.target) == ("k1", "key.revoke", key.id)


def test_no_key_without_its_entry_in_the_audit_log(
    engine: sa.Engine, store: KeyStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    key, text = make(store)

    def fails(*_: Any, **__: Any) -> None:
        raise StorageError("full")

    monkeypatch.setattr("bco_ray.control.keys.record", fails)
    with pytest.raises(StorageError, match="full"):
        make(store)
    with pytest.raises(StorageError, match="full"):
        store.revoke(key.id, "k1")
    assert store.list() == [key]
    assert store.find(text) == key


def test_the_limits_of_a_key(engine: sa.Engine, store: KeyStore) -> None:
    key, _ = make(store, limits=Limits(running_jobs=2, gpu_hours_per_month=0.5, upload_bytes=10))
    assert store.limits(key.id) == key.limits
    assert store.limits("loopback") == Limits()
    with engine.begin() as connection:  # as keys were kept before there were more limits
        connection.execute(sa.update(api_keys).values(limits={"running_jobs": 2}))
    assert store.limits(key.id) == Limits(running_jobs=2)
    for wrong in ({"gpu_hours_per_month": 0}, {"gpu_hours_per_month": float("inf")}, {"upload_bytes": 0}):
        with pytest.raises(ValidationError):
            Limits.model_validate(wrong)


def test_once_there_was_a_key_there_always_was(store: KeyStore) -> None:
    assert not store.any()
    key, _ = make(store)
    assert store.any()
    store.revoke(key.id, "k1")
    assert store.any()


def test_an_unknown_id_costs_a_comparison_too(store: KeyStore, monkeypatch: pytest.MonkeyPatch) -> None:
    _, text = make(store)
    calls: list[tuple[str, str]] = []
    compare = hmac.compare_digest

    def counted(one: str, other: str) -> bool:
        calls.append((one, other))
        return compare(one, other)

    monkeypatch.setattr(hmac, "compare_digest", counted)
    unknown = f"sk-bco-{'zzzzzzzz' if text[7:15] != 'zzzzzzzz' else 'yyyyyyyy'}_{text[16:]}"
    wrong = text[:16] + text[16:][::-1]
    for presented in (text, unknown, wrong):
        store.find(presented)
    assert len(calls) == 3
    assert {len(side) for call in calls for side in call} == {64}


def test_the_secret_is_nowhere(engine: sa.Engine, store: KeyStore, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG):
        key, text = make(store)
        secret = text[16:]
        store.find(text)
        errors = []
        for call in (lambda: store.get(secret), lambda: store.revoke(f"sk-bco-zzzzzzzz_{secret}", "x")):
            with pytest.raises(NotFoundError) as raised:
                call()
            errors.append(str(raised.value))
        store.revoke(text, "x")
    for place in (everything_in(engine), caplog.text, *errors, repr(store.list()), repr(store), key.shown):
        assert secret not in place
        assert secret[:20] not in place


def test_the_database_failing_tells_no_secret(store: KeyStore, engine: sa.Engine) -> None:
    _, text = make(store)
    with engine.begin() as connection:
        connection.execute(sa.text("drop table api_keys"))
    with pytest.raises(StorageError) as raised:
        store.find(text)
    assert text[16:] not in str(raised.value)
    assert text[16:] not in str(raised.value.__cause__)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"role": "root"}, "role: root: no such role; there are infer, read, submit, admin."),
        ({"project": "../x"}, "project: ../x: use 1 to 64 letters"),
        ({"project": ""}, "project: : use 1 to 64 letters"),
        ({"expires_at": 1.0}, "expires_at: lies in the past"),
    ],
)
def test_what_no_key_can_have(tmp_path: Path, wrong: dict[str, Any], message: str) -> None:
    store = KeyStore.open(tmp_path)
    with pytest.raises(SpecError, match=re.escape(message)):
        make(store, **wrong)
    assert not store.any()


@pytest.mark.parametrize("name", ["", "  ", "a\nb", "\x00", "\ud800", "x" * 129])
def test_a_name_is_to_be_read(tmp_path: Path, name: str) -> None:
    with pytest.raises(SpecError, match="name: say in 1 to 128 printable characters what the key is for."):
        KeyStore.open(tmp_path).create("bots", name, "read", limits=UNLIMITED, actor="x")


def test_limits_are_at_least_one() -> None:
    with pytest.raises(ValidationError, match="requests_per_minute"):
        Limits(requests_per_minute=0)
    with pytest.raises(ValidationError, match="requests"):
        Limits.model_validate({"requests": 3})


def test_a_pepper_is_made_once_or_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    key, text = make(KeyStore.open(tmp_path))
    assert (tmp_path / "keys-pepper").stat().st_mode & 0o777 == 0o600
    assert KeyStore.open(tmp_path).find(text) == ApiKey(**vars(key))
    monkeypatch.setenv("BCO_KEYS_PEPPER", "x" * 32)
    assert KeyStore.open(tmp_path).find(text) is None
    monkeypatch.setenv("BCO_KEYS_PEPPER", "short")
    with pytest.raises(StorageError, match=r"\$BCO_KEYS_PEPPER: a secret needs at least 16 bytes"):
        KeyStore.open(tmp_path)


def test_keys_in_a_database_elsewhere(tmp_path: Path, postgresql: str) -> None:
    _, text = make(KeyStore.open(tmp_path / "new", postgresql))
    assert KeyStore.open(tmp_path / "new", postgresql).find(text) is not None
    assert [path.name for path in (tmp_path / "new").glob("[!.]*")] == ["keys-pepper"]


def test_each_role_may_all_that_the_one_before_it_may() -> None:
    allowed = [{action for action in get_args(Action) if may(role, action)} for role in ROLES]
    assert list(ROLES) == ["infer", "read", "submit", "admin"]
    assert all(lower < higher for lower, higher in pairwise(allowed))
    assert allowed[0] == {"infer", "vote"}
    assert allowed[-1] == set(get_args(Action))
    assert may("submit", "upload")
    assert not may("submit", "promote")


def test_who_or_what_is_unknown_may_not() -> None:
    for action in get_args(Action):
        assert not may("anonymous", action)
        assert not may("", action)
    assert not may("admin", "delete")  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def a_store(tmp_path_factory: pytest.TempPathFactory) -> KeyStore:
    return KeyStore.open(tmp_path_factory.mktemp("keys"))


ALPHABET = st.sampled_from("abz019AZ_-")
KEY_LIKE = st.tuples(st.text(ALPHABET, min_size=6, max_size=9), st.text(ALPHABET, min_size=42, max_size=44))


TEXTS = st.one_of(st.text(), st.text().map("sk-bco-".__add__), KEY_LIKE.map("_".join).map("sk-bco-".__add__))


@settings(max_examples=200, deadline=None)
@given(TEXTS)
def test_no_text_raises(a_store: KeyStore, presented: str) -> None:
    assert a_store.find(presented) is None


@settings(max_examples=100, deadline=None)
@given(st.text())
def test_no_id_raises_anything_but_not_found(a_store: KeyStore, key_id: str) -> None:
    with pytest.raises(NotFoundError, match="bco keys list"):
        a_store.revoke(key_id, "x")


def test_what_is_kept_of_a_key_is_json(store: KeyStore) -> None:
    key, _ = make(store)
    assert json.loads(json.dumps({**vars(key), "limits": key.limits.model_dump()}))["id"] == key.id
