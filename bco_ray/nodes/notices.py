"""What a cloud says to a machine that it is about to take away: its metadata server, asked over plain HTTP."""

from __future__ import annotations

import http.client
import json
import os
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from bco_ray.errors import ClusterError

TIMEOUT_SECONDS = 2.0
GOOGLE_SECONDS = 30.0
"""From Google's notice to the end; Amazon says when that is, mostly in two minutes."""

TOKEN_SECONDS = 21600

_open = urllib.request.build_opener(urllib.request.ProxyHandler({})).open  # it is never behind a proxy


@dataclass(frozen=True)
class Notice:
    """This machine goes at `at` (unix seconds); `what` says it for a log."""

    what: str
    at: float


class Cloud(Protocol):
    """A metadata server. Both methods raise ClusterError if it cannot be asked, or answers nonsense."""

    def present(self) -> bool:
        """Whether it is this cloud's that answers here."""

    def notice(self) -> Notice | None:
        """What it has announced."""


class Amazon:
    """EC2's, version 2: each question carries a token. `AWS_EC2_METADATA_SERVICE_ENDPOINT` is AWS' own variable."""

    def __init__(self) -> None:
        self._root = os.environ.get("AWS_EC2_METADATA_SERVICE_ENDPOINT", "http://169.254.169.254").rstrip("/")
        self._token: str | None = None

    def present(self) -> bool:
        """See `Cloud`."""
        self._token = self._new_token()
        return self._token is not None

    def notice(self) -> Notice | None:
        """See `Cloud`. There is no page while nothing is announced."""
        text = self._ask()
        if text is None:
            return None
        try:
            said = json.loads(text)
            return Notice(f"EC2 will {said['action']} it", datetime.fromisoformat(said["time"]).timestamp())
        except (ValueError, KeyError, TypeError) as error:
            raise ClusterError(f"EC2's notice cannot be read: {text[:200]!r}: {error}") from error

    def _ask(self) -> str | None:
        """Once more with a new token if the old one has expired."""
        for _ in range(2):
            self._token = self._token or self._new_token()
            try:
                headers = {"X-aws-ec2-metadata-token": self._token or ""}
                return _get(f"{self._root}/latest/meta-data/spot/instance-action", headers)
            except PermissionError:
                self._token = None
        raise ClusterError("EC2's metadata server refuses its own tokens")

    def _new_token(self) -> str | None:
        headers = {"X-aws-ec2-metadata-token-ttl-seconds": str(TOKEN_SECONDS)}
        try:
            return _get(f"{self._root}/latest/api/token", headers, method="PUT")
        except PermissionError:
            return None


class Google:
    """Compute Engine's. `GCE_METADATA_HOST` is Google's own variable."""

    def __init__(self) -> None:
        host = os.environ.get("GCE_METADATA_HOST", "169.254.169.254")
        self._root = f"http://{host}/computeMetadata/v1/instance"

    def present(self) -> bool:
        """See `Cloud`."""
        return self._ask("id") is not None

    def notice(self) -> Notice | None:
        """See `Cloud`."""
        if self._ask("preempted") != "TRUE":
            return None
        return Notice("Compute Engine preempts it", time.time() + GOOGLE_SECONDS)

    def _ask(self, what: str) -> str | None:
        try:
            return _get(f"{self._root}/{what}", {"Metadata-Flavor": "Google"})
        except PermissionError as error:
            raise ClusterError(f"Compute Engine's metadata server refuses: {error}") from error


def cloud_here(clouds: Sequence[Cloud]) -> Cloud | None:
    """The one whose server answers; None: no cloud, or none that is known."""
    for cloud in clouds:
        try:
            if cloud.present():
                return cloud
        except ClusterError:
            continue
    return None


def _get(url: str, headers: dict[str, str], method: str = "GET") -> str | None:
    """None: there is no such page. Raises PermissionError for 401 and 403, ClusterError for whatever else is wrong."""
    request = urllib.request.Request(url, headers=headers, method=method)
    try:
        with _open(request, timeout=TIMEOUT_SECONDS) as answer:
            text: str = answer.read(4096).decode(errors="replace").strip()
            return text
    except urllib.error.HTTPError as error:
        if error.code in {401, 403}:
            raise PermissionError(f"{url}: {error.code}") from error
        if error.code in {404, 405}:
            return None
        raise ClusterError(f"{url}: {error.code}") from error
    except (OSError, http.client.HTTPException) as error:
        raise ClusterError(f"{url}: {error}") from error
