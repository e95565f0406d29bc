"""What a driver leaves in its job's directory when it cannot begin, or its job is at fault."""

from __future__ import annotations

from pathlib import Path

import pytest

from bco_ray.pipeline import driver
from bco_ray.storage import files
from bco_ray.storage.job_directory import JobDirectory
from bco_ray.telemetry import Progress


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


class TestWaiting:
    """`now` is what the clock says."""

    @pytest.fixture
    def clock(self, monkeypatch: pytest.MonkeyPatch) -> list[float]:
        now = [1000.0]
        monkeypatch.setattr(driver.time, "time", lambda: now[0])
        return now

    def told(self, directory: JobDirectory) -> tuple[str, float, str | None]:
        return tuple(directory.progress[name] for name in ("phase", "done", "waiting_for"))  # type: ignore[return-value]

    def test_a_phase_that_stands_still_waits_for_what_the_cluster_lacks(
        self, tmp_path: Path, clock: list[float]
    ) -> None:
        directory = JobDirectory(tmp_path, "ftjob-1")
        written = driver._Written(directory)
        written.waits_for("a machine with 1 GPU")
        assert not directory.progress, "it has not begun"
        written("score", Progress(3, 9), "rows")
        written("score", Progress(4, 9), "rows")
        written.waits_for("a machine with 1 GPU")
        assert self.told(directory) == ("score", 3, None), "it moved just now: somebody else waits"
        clock[0] += 10
        written.waits_for("a machine with 1 GPU")
        assert self.told(directory) == ("score", 4, "a machine with 1 GPU")
        written.waits_for(None)
        assert self.told(directory) == ("score", 4, None)
        written.waits_for("a machine with 1 GPU")
        written("score", Progress(5, 9), "rows")
        assert self.told(directory) == ("score", 5, None), "it is known at once that it goes on"

    def test_a_training_has_a_status_of_its_own(self, tmp_path: Path, clock: list[float]) -> None:
        directory = JobDirectory(tmp_path, "ftjob-1")
        written = driver._Written(directory)
        written("train", Progress(0), "")
        clock[0] += 100
        written.waits_for("a machine with 1 GPU")
        assert self.told(directory) == ("train", 0, None)
