"""Every error a user can cause or meet, with the exit code the command line gives it.

A message is one paragraph: what is wrong, where (file, row or field), and the way out.
"""


class BcoError(Exception):
    """Root of all errors raised on purpose. `exit_code` 1: the work failed; 2: wrong usage or spec."""

    exit_code = 1


class SpecError(BcoError):
    """The spec or the command line asks for something that cannot be. `field`: the spec's (first) that is to blame."""

    exit_code = 2

    def __init__(self, message: str, field: str | None = None) -> None:
        super().__init__(message)
        self.field = field


class DataError(BcoError):
    """The feedback log, or what was prepared from it, cannot be used."""


class ModelError(BcoError):
    """A model directory or its tokenizer cannot be used."""


class GateError(ModelError):
    """A version's evaluation does not pass the policy it was registered with; `reasons` are all that is against it."""

    def __init__(self, message: str, reasons: list[str]) -> None:
        super().__init__(message)
        self.reasons = reasons


class StorageError(BcoError):
    """A file or table is missing, torn or not what its manifest says."""


class ConflictError(StorageError):
    """Somebody else changed the thing first (an alias, an idempotency key)."""


class TrainingError(BcoError):
    """Training stopped and would stop again if merely retried."""


class ClusterError(BcoError):
    """The Ray cluster cannot be started or reached."""


class InterruptedRunError(BcoError):
    """Somebody pressed Ctrl-C or sent SIGTERM."""

    exit_code = 130


class ServingError(BcoError):
    """The server cannot start or a model cannot be served."""


class Refused(Exception):  # noqa: N818 - a verdict on one row, not a failure of the program
    """One row that cannot be used. `reason` is a short stable code that is counted, `detail` is for a person."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason
        self.detail = detail
        self.user: str | None = None
        """Who voted, if known: so that what is kept of the row names a pseudonym instead."""
