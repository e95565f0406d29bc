"""`bco keys`: what is printed, and what never is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from bco_ray.cli.keys import app
from bco_ray.control.audit import AuditLog
from bco_ray.control.keys import KeyStore
from bco_ray.errors import SpecError
from bco_ray.storage.database import open_database
from bco_ray.storage.feedback_rows import NotFoundError

ROBOT = ["create", "--project", "bots", "--name", "a robot's", "--role", "submit"]


@pytest.fixture(autouse=True)
def _no_settings_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("BCO_DATABASE_URL", raising=False)
    monkeypatch.delenv("BCO_KEYS_PEPPER", raising=False)


def keys(storage: Path, *words: str) -> Result:
    return CliRunner().invoke(app, [*words, "--storage", str(storage)])


def says(storage: Path, *words: str) -> Any:
    result = keys(storage, *words, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def test_a_key_is_shown_once(tmp_path: Path) -> None:
    limits = (
        "--requests-per-minute",
        "60",
        "--running-jobs",
        "2",
        "--gpu-hours-per-month",
        "0.5",
        "--upload-bytes",
        "9",
    )
    made = says(tmp_path, *ROBOT, *limits, "--expires-days", "7")
    key = KeyStore.open(tmp_path).find(made["key"])
    assert key is not None
    assert made == {"key": made["key"], **vars(key), "limits": key.limits.model_dump()}
    assert (key.limits.requests_per_minute, key.limits.running_jobs, key.limits.queued_jobs) == (60, 2, None)
    assert (key.limits.gpu_hours_per_month, key.limits.upload_bytes) == (0.5, 9)
    assert key.expires_at == pytest.approx(key.created_at + 7 * 86400, abs=60)
    secret = made["key"].partition("_")[2]
    for later in (keys(tmp_path, "list"), keys(tmp_path, "list", "--json"), keys(tmp_path, "revoke", made["key"])):
        assert later.exit_code == 0
        assert secret not in later.output


def test_for_people(tmp_path: Path) -> None:
    made = keys(tmp_path, *ROBOT)
    assert made.stdout.startswith("key: sk-bco-")
    assert made.stderr == "Keep the key now: it is not shown again.\n"
    (line,) = keys(tmp_path, "list").stdout.splitlines()
    (key,) = KeyStore.open(tmp_path).list()
    assert line.startswith(f"sk-bco-{key.id}_...  bots  submit  a robot's  created 20")
    assert line.endswith("expires never, revoked never")
    keys(tmp_path, "revoke", key.id)
    assert "revoked 20" in keys(tmp_path, "list").stdout


def test_list_and_revoke(tmp_path: Path) -> None:
    first = says(tmp_path, *ROBOT)
    second = says(tmp_path, "create", "--project", "cats", "--name", "n", "--role", "admin")
    listed = says(tmp_path, "list")["keys"]
    assert [key["id"] for key in listed] == [first["id"], second["id"]]
    assert [key["id"] for key in says(tmp_path, "list", "--project", "cats")["keys"]] == [second["id"]]
    assert says(tmp_path, "revoke", first["id"])["revoked_at"] > 0
    assert KeyStore.open(tmp_path).find(first["key"]) is None
    actors = {entry.actor for entry in AuditLog(open_database(tmp_path)).list()[0]}
    assert len(actors) == 1
    assert actors.pop().startswith("cli:")


def test_errors(tmp_path: Path) -> None:
    assert isinstance(keys(tmp_path, "revoke", "zzzzzzzz").exception, NotFoundError)
    wrong_role = keys(tmp_path, "create", "--project", "bots", "--name", "n", "--role", "root")
    assert isinstance(wrong_role.exception, SpecError)
    assert keys(tmp_path, *ROBOT, "--requests-per-minute", "0").exit_code == 2
    for hours in ("0", "nan", "inf"):
        assert isinstance(keys(tmp_path, *ROBOT, "--gpu-hours-per-month", hours).exception, SpecError)
    assert keys(tmp_path, *ROBOT, "--upload-bytes", "0").exit_code == 2
    assert keys(tmp_path, "create", "--project", "bots").exit_code == 2


def test_a_user_without_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def nameless() -> str:
        raise KeyError("getpwuid(): uid not found: 4711")

    monkeypatch.setattr("getpass.getuser", nameless)
    says(tmp_path, *ROBOT)
    assert AuditLog(open_database(tmp_path)).list()[0][0].actor.removeprefix("cli:").isdigit()


def test_keys_in_a_database_elsewhere(tmp_path: Path, postgresql: str, monkeypatch: pytest.MonkeyPatch) -> None:
    made = says(tmp_path, *ROBOT, "--database", postgresql)
    assert says(tmp_path, "list")["keys"] == []
    monkeypatch.setenv("BCO_DATABASE_URL", postgresql)
    assert [key["id"] for key in says(tmp_path, "list")["keys"]] == [made["id"]]
