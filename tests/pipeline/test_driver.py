"""What a driver leaves in its job's directory when it cannot begin, or its job is at fault."""

from __future__ import annotations

from pathlib import Path

import pytest

from bco_ray.pipeline import driver
from bco_ray.storage import files
from bco_ray.storage.job_directory import JobDirectory


def test_who_finds_another_driver_at_work_blames_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The attempt counts as lost, and there will be another; an error would end the job."""
    monkeypatch.setattr(driver, "WAIT_SECONDS", 0)
    directory = JobDirectory(tmp_path, "ftjob-1")
    with files.locked(directory.path / ".driver.lock"):
        assert driver.main(tmp_path, "ftjob-1", 2) != 0
    assert directory.error(2) is None


def test_an_older_attempt_gives_way_and_leaves_the_newer_ones_error(tmp_path: Path) -> None:
    directory = JobDirectory(tmp_path, "ftjob-1")
    directory.begin_attempt(2)
    directory.write("error", {"attempt": 2, "code": "data_error", "message": "no votes"})
    assert driver.main(tmp_path, "ftjob-1", 1) != 0
    assert directory.error(2) == {"attempt": 2, "code": "data_error", "message": "no votes"}


def test_an_error_of_the_job_is_written_down(tmp_path: Path) -> None:
    directory = JobDirectory(tmp_path, "ftjob-1")
    directory.path.mkdir(parents=True)
    directory.spec.write_text("model: {base: /nowhere}\nno_such_section: 1\n")
    assert driver.main(tmp_path, "ftjob-1", 1) != 0
    error = directory.error(1)
    assert error
    assert error["code"] == "spec_error"
    assert "no_such_section" in error["message"]
