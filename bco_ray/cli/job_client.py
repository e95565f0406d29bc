"""The door to a server's jobs: JSON in and out through the `openai` client, and every error as one line.

Nothing here prints; `openai` is imported, so commands import this when they run.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import IO, Any, TypeVar
from urllib.parse import quote

import httpx
import openai

from bco_ray.cli.chat import visible
from bco_ray.errors import ServingError

Json = dict[str, Any]
T = TypeVar("T")

FOLLOW_SECONDS = 600.0
"""How long a server may be away while a job is followed: it is restarted now and then."""

_CONNECT_SECONDS, _ANSWER_SECONDS, _UPLOAD_SECONDS, _ESTIMATE_SECONDS = 5.0, 60.0, 600.0, 90.0
_FIRST_PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS = 1.0, 5.0
_AWAY = {429, 502, 503, 504}
_WRONG = {400, 422}
_QUOTA = "insufficient_quota"
"""A 429 that no waiting mends."""


class RefusedError(ServingError):
    """The server will not. `exit_code` 2 where the request itself is wrong."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.exit_code = 2 if status in _WRONG else 1


class AwayError(ServingError):
    """Nobody answers just now, or only that it is too much; `after`: the seconds the server asks to wait."""

    def __init__(self, what: str, way_out: str = "", after: float | None = None) -> None:
        super().__init__(f"{what} {way_out}".strip())
        self.what = what
        self.after = after


class QuietError(AwayError):
    """Nothing came for a while; it may be that there is nothing."""


class JobServer:
    """The job routes of the server at `url` (with or without /v1). All calls raise RefusedError or AwayError."""

    def __init__(self, url: str, key: str) -> None:
        self.url = url.rstrip("/").removesuffix("/v1").rstrip("/")
        self._key = key
        timeout = openai.Timeout(_ANSWER_SECONDS, connect=_CONNECT_SECONDS)
        self._client = openai.OpenAI(base_url=f"{self.url}/v1", api_key=key or "none", timeout=timeout, max_retries=0)

    def job(self, job_id: str) -> Json:
        """How it stands."""
        return self.get(_path(job_id))

    def events(self, job_id: str, after: str | None = None, limit: int = 100) -> Json:
        """A page of events: the newest first, those older than `after`."""
        return self.get(_path(job_id, "events"), {"after": after, "limit": limit})

    def checkpoints(self, job_id: str) -> Json:
        """The newest hundred, newest first."""
        return self.get(_path(job_id, "checkpoints"), {"limit": 100})

    def jobs(self, query: Mapping[str, Any]) -> Json:
        """A page, the newest first."""
        return self.get("/fine_tuning/jobs", query)

    def create(self, body: Json, idempotency_key: str) -> Json:
        """The job that this key made, now or before."""
        return self.post("/fine_tuning/jobs", body, {"Idempotency-Key": idempotency_key})

    def estimate(self, body: Json) -> Json:
        """What `create` with this body would cost."""
        with self._errors():
            path = "/fine_tuning/jobs/estimate"
            return self._object(
                self._client.post(path, body=body, cast_to=object, options={"timeout": _ESTIMATE_SECONDS})
            )

    def steer(self, job_id: str, verb: str) -> Json:
        """The job, after `cancel`, `pause` or `resume`."""
        return self.post(_path(job_id, verb))

    def retry(self, job_id: str, body: Json, idempotency_key: str) -> Json:
        """The new job that this key made of it, now or before."""
        return self.post(_path(job_id, "retry"), body, {"Idempotency-Key": idempotency_key})

    def get(self, path: str, query: Mapping[str, Any] | None = None) -> Json:
        """Without what is None in `query`."""
        params = {name: value for name, value in (query or {}).items() if value is not None}
        with self._errors():
            return self._object(self._client.get(path, cast_to=object, options={"params": params}))

    def post(self, path: str, body: Json | None = None, headers: dict[str, str] | None = None) -> Json:
        """`body` as JSON."""
        with self._errors():
            return self._object(self._client.post(path, body=body, cast_to=object, options={"headers": headers or {}}))

    def upload(self, name: str, file: IO[bytes]) -> Json:
        """The new file object. `file` is read block by block."""
        with self._errors():
            made = self._client.files.create(file=(name, file), purpose="fine-tune", timeout=_UPLOAD_SECONDS)
            return made.model_dump()

    def log(self, job_id: str, offset: int, *, follow: bool) -> Iterator[bytes]:
        """All that its processes printed from byte `offset` on, as it comes; with `follow` until the job has ended."""
        query = {"offset": str(offset), **({"follow": "true"} if follow else {})}
        bearer = {"Authorization": f"Bearer {self._key}"} if self._key else {}
        timeout = httpx.Timeout(_ANSWER_SECONDS, connect=_CONNECT_SECONDS)
        url = f"{self.url}/v1{_path(job_id, 'logs')}"
        try:
            with httpx.stream("GET", url, params=query, headers=bearer, timeout=timeout) as reply:
                if reply.is_error:
                    reply.read()
                    raise self._answered(reply.status_code, _envelope(reply), reply.headers.get("retry-after"))
                yield from reply.iter_bytes()
        except httpx.ReadTimeout:
            raise QuietError(f"{self.url}: no more of the log for {_ANSWER_SECONDS:.0f} seconds.") from None
        except httpx.HTTPError as error:
            raise AwayError(f"{self.url}: the log broke off ({type(error).__name__}).") from None

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except openai.APITimeoutError:
            raise AwayError(f"{self.url}: no answer in time.") from None
        except openai.APIConnectionError:
            way_out = "Start one with: bco serve; or name yours with --url or $BCO_BASE_URL."
            raise AwayError(f"{self.url}: no server answers there.", way_out) from None
        except openai.APIStatusError as error:
            envelope = error.body if isinstance(error.body, dict) else {}
            raise self._answered(error.status_code, envelope, error.response.headers.get("retry-after")) from None
        except openai.APIError as error:
            raise ServingError(f"{self.url}: {_line(error.message)}") from None

    def _answered(self, status: int, envelope: Json, retry_after: str | None) -> ServingError:
        """The error that a status and the inside of its envelope mean."""
        message = _line(envelope.get("message") or f"what answers there says {status} and no more.")
        if status in {401, 403}:
            way_out = "Set $BCO_API_KEY to a key of this server that may do this."
            return RefusedError(f"{self.url}: {message} {way_out}", status)
        if envelope.get("code") == _QUOTA:
            return RefusedError(f"{self.url}: {message}", status)
        if status in _AWAY or (not envelope and status in {404, 500}):  # a proxy before a server that starts
            return AwayError(f"{self.url}: {message}", after=_seconds(retry_after))
        return RefusedError(f"{self.url}: {message}", status)

    def _object(self, reply: object) -> Json:
        if not isinstance(reply, dict):
            raise ServingError(f"{self.url}: what answers there is no bco-ray server.")
        return reply


class Patience:
    """Asks again while the server is away, for up to `seconds` at a time, and says so once."""

    def __init__(self, seconds: float, say: Callable[[str], None]) -> None:
        self._seconds = seconds
        self._say = say

    def __call__(self, ask: Callable[[], T]) -> T:
        """What `ask` returns. Raises its AwayError when the time is over, and everything else at once."""
        began, pause, told = time.monotonic(), _FIRST_PAUSE_SECONDS, False
        while True:
            try:
                answer = ask()
            except AwayError as error:
                wait = pause if error.after is None else error.after
                if time.monotonic() + wait > began + self._seconds:
                    raise
                if not told:
                    self._say(f"{error.what} Asking again ...")
                told = True
                time.sleep(wait)
                pause = min(_LONGEST_PAUSE_SECONDS, 2 * pause)
            else:
                if told:
                    self._say("The server answers again.")
                return answer


def _path(job_id: str, what: str = "") -> str:
    return f"/fine_tuning/jobs/{quote(job_id, safe='')}" + (f"/{what}" if what else "")


def _envelope(reply: httpx.Response) -> Json:
    try:
        error = reply.json()["error"]
    except (ValueError, TypeError, LookupError):
        return {}
    return error if isinstance(error, dict) else {}


def _seconds(retry_after: str | None) -> float | None:
    """Of a Retry-After header; one that names a date says nothing here."""
    try:
        return max(0.0, float(retry_after or ""))
    except ValueError:
        return None


def _line(text: Any) -> str:
    return " ".join(visible(str(text)).split())
