"""What the HTTP side of a server can be told, with the defaults for who tells it nothing."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from bco_ray.serving.args import ServeArgs


@dataclass(frozen=True)
class Settings:
    """`retention_days` None keeps answers for ever. `cors_origins`: whose browser pages may vote. `storage`: of the
    registry; None: where the log is.
    """

    request_timeout_seconds: float = 600.0
    feedback_token_seconds: float = 86400.0
    retention_days: float | None = None
    cors_origins: tuple[str, ...] = ()
    storage: Path | None = None

    @classmethod
    def of(cls, args: ServeArgs) -> Settings:
        """The part of a server's arguments that the API works with."""
        return cls(
            args.request_timeout_seconds,
            args.feedback_token_seconds,
            args.retention_days,
            tuple(args.cors_origins),
            args.storage,
        )
