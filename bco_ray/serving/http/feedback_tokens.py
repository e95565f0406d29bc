"""Tokens that let their holder vote on one answer for a while, so that a browser needs no API key."""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
import time
from pathlib import Path

from bco_ray.storage.secret_files import kept_secret
from bco_ray.web.errors import ApiError

SECRET_FILE = "feedback-secret"
SECRET_VARIABLE = "BCO_FEEDBACK_SECRET"
HEADER = "x-feedback-token"

_TOKEN = re.compile(r"([0-9]{1,15})\.[A-Za-z0-9_-]+")


def feedback_secret(storage: Path) -> bytes:
    """`$BCO_FEEDBACK_SECRET`, else the secret kept in `storage`. Raises StorageError."""
    return kept_secret(storage / SECRET_FILE, SECRET_VARIABLE)


class FeedbackTokens:
    """Makes and checks tokens: `<expiry in unix seconds>.<HMAC-SHA256 over response id and expiry>`."""

    def __init__(self, secret: bytes, seconds: float) -> None:
        self._secret = secret
        self._seconds = seconds

    def issue(self, response_id: str) -> str:
        """A token for votes on this answer."""
        return self._signed(response_id, int(time.time() + self._seconds))

    def check(self, token: str, response_id: str) -> None:
        """Raises ApiError unless it was issued for this answer and has not expired."""
        expiry = int(found[1]) if (found := _TOKEN.fullmatch(token)) else 0
        if not hmac.compare_digest(token.encode(), self._signed(response_id, expiry).encode()):
            raise _refusal("invalid", "The feedback token is not one for this answer.")
        if expiry <= time.time():
            raise _refusal("expired", "The feedback token has expired.")

    def _signed(self, response_id: str, expiry: int) -> str:
        mac = hmac.new(self._secret, f"{response_id}\n{expiry}".encode(), hashlib.sha256).digest()
        return f"{expiry}.{base64.urlsafe_b64encode(mac).rstrip(b'=').decode()}"


def _refusal(why: str, message: str) -> ApiError:
    return ApiError(403, message, code=f"feedback_token_{why}", param="feedback_token")
