"""Where a job of the job service and its driver on the cluster meet: `<storage>/jobs/<id>/`.

spec.yaml      what to do; written by the service before the driver starts
origin.json    likewise: the project, and the trace that the request for it belonged to
attempt.json   the number of the newest attempt: an older driver that still lives gives way
driver.log     all that the drivers printed, one attempt after the other
progress.json  the phase and how far it is
resolved.json  the spec with every `auto` replaced, the run's directory, its checkpoints' and its records'
outcome.json   the registered model: the job has succeeded, whatever became of the driver
error.json     why this attempt's driver gave up; `again` says whether another one may do better
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bco_ray.errors import StorageError
from bco_ray.storage import files

Json = dict[str, Any]


class JobDirectory:
    """The files of one job. Reading what is not there (yet) gives None."""

    def __init__(self, storage: Path, job_id: str) -> None:
        self.path = storage / "jobs" / job_id
        self.spec = self.path / "spec.yaml"
        self.log = self.path / "driver.log"

    def begin_attempt(self, number: int) -> None:
        """Raises StorageError if a newer one has begun. The caller holds the lock."""
        newest = int(self._read("attempt") or 0)
        if newest > number:
            raise StorageError(f"{self.path}: attempt {newest} has begun; attempt {number} gives way.")
        files.write_json(self.path / "attempt.json", number)

    @property
    def origin(self) -> Json:
        """`project` and `traceparent`."""
        return self._facts("origin") or {}

    @property
    def progress(self) -> Json:
        """`phase`, `percent`, `eta_seconds`, ...; empty before the first."""
        return self._facts("progress") or {}

    @property
    def resolved(self) -> Json | None:
        """`spec`, where `run` and `checkpoints` lie, and the name of its `records`."""
        return self._facts("resolved")

    @property
    def outcome(self) -> Json | None:
        """`model`, `evaluation`, `trained_tokens`."""
        return self._facts("outcome")

    def error(self, attempt: int) -> Json | None:
        """`code`, `message` and `again` of the attempt's own error."""
        found = self._facts("error")
        return found if found and found["attempt"] == attempt else None

    def write(self, name: str, value: Json) -> None:
        """`name` without `.json`."""
        files.write_json(self.path / f"{name}.json", value)

    @property
    def log_bytes(self) -> int:
        """How long the log is by now."""
        return self.log.stat().st_size if self.log.is_file() else 0

    def log_text(self, offset: int, limit: int) -> bytes:
        """Up to `limit` bytes of the log from `offset` on."""
        try:
            with self.log.open("rb") as file:
                file.seek(offset)
                return file.read(limit)
        except FileNotFoundError:
            return b""

    def _facts(self, name: str) -> Json | None:
        found: Json | None = self._read(name)
        return found

    def _read(self, name: str) -> Any:
        path = self.path / f"{name}.json"
        return files.read_json(path) if path.is_file() else None
