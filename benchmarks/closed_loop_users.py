"""The people of `closed_loop.py`. What they like is the demo's hidden rule; who votes, and how wrongly, is said here.

Prompts are of two kinds. Whoever asks about opening hours, returns or sums has a problem: content, such a person rarely
bothers to vote, angry nearly always does. Of the other topics people vote out of curiosity, and somewhat more if they
are angry. So ups and downs come from different prompts. A thumb is then given wrongly with a chance of `NOISE`.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace

import httpx

from bco_ray.demo.world import GOOD_STYLES, Prompt, style_of

NOISE = 0.10
PROBLEMS = frozenset({"opening hours", "returns", "sums"})
KINDS = ("problem", "curiosity")
CHANCES = {("problem", True): 0.15, ("problem", False): 0.90, ("curiosity", True): 0.55, ("curiosity", False): 0.65}
"""Of a vote, by the kind of prompt and whether the answer was liked."""

AT_ONCE = 16
MAX_TOKENS = 64
PEOPLE = 400
TIMEOUT_SECONDS = 60
SWITCH_SECONDS = 180


@dataclass(frozen=True)
class User:
    """One visit. All that is random about it is drawn beforehand, so every arm is visited by the same people."""

    number: int
    prompt: Prompt
    seed: int
    bothers: float
    errs: float

    def thumb(self, liked: bool) -> bool | None:
        """True, False, or None for no vote."""
        if self.bothers >= CHANCES[kind(self.prompt), liked]:
            return None
        return liked != (self.errs < NOISE)


@dataclass(frozen=True)
class Visit:
    """What came of it; `model` answered, None if the request failed. `style`: how the hidden rule reads the answer."""

    user: User
    model: str | None
    response: str
    style: str
    thumb: bool | None

    @property
    def liked(self) -> bool:
        """What the user thinks, without noise."""
        return self.style in GOOD_STYLES


def kind(prompt: Prompt) -> str:
    """`problem` or `curiosity`."""
    return "problem" if prompt.topic in PROBLEMS else "curiosity"


def users(prompts: Sequence[Prompt], count: int, *, seed: int, round_: int) -> list[User]:
    """The people of one round."""
    rng = random.Random(f"closed loop {seed} {round_}")
    return [User(n, rng.choice(prompts), rng.getrandbits(31), rng.random(), rng.random()) for n in range(count)]


def visit(url: str, model: str, people: Sequence[User]) -> list[Visit]:
    """All ask, `AT_ONCE` at a time; then those who vote do, in the users' order whatever the order of answers was."""
    with httpx.Client(base_url=url, timeout=TIMEOUT_SECONDS) as client:
        with ThreadPoolExecutor(AT_ONCE) as pool:
            visits = list(pool.map(lambda user: _ask(client, model, user), people))
        return [_vote(client, visit) for visit in visits]


def _ask(client: httpx.Client, model: str, user: User) -> Visit:
    body = {"model": model, "messages": user.prompt.messages, "max_tokens": MAX_TOKENS, "temperature": 1.0}
    reply = _post(client, "/v1/chat/completions", {**body, "seed": user.seed})
    if reply is None:
        return Visit(user, None, "", "", None)
    said = reply.json()
    style = style_of(user.prompt, said["choices"][0]["message"]["content"] or "")
    return Visit(user, said["model"], said["id"], style, user.thumb(style in GOOD_STYLES))


def _vote(client: httpx.Client, visit: Visit) -> Visit:
    if visit.thumb is None:
        return visit
    name = f"user-{visit.user.number % PEOPLE}"
    sent = _post(client, "/v1/feedback", {"response_id": visit.response, "label": visit.thumb, "user": name})
    return visit if sent is not None else replace(visit, model=None)


def _post(client: httpx.Client, path: str, body: dict[str, object]) -> httpx.Response | None:
    """None if it failed; nothing is asked twice."""
    try:
        reply = client.post(path, json=body)
    except httpx.HTTPError:
        return None
    return None if reply.is_error else reply


@dataclass
class Passers:
    """They go on asking while a round trains and the alias moves; nothing of it is kept. Every failure is counted."""

    url: str
    model: str
    prompts: Sequence[Prompt]
    pause_seconds: float = 3.0
    asked: int = 0
    failed: int = 0
    seen: str = ""
    _over: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread | None = None

    def __enter__(self) -> Passers:
        self._thread = threading.Thread(target=self._ask, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        if self._thread:
            self._thread.join(TIMEOUT_SECONDS)

    def until_answered_by(self, version: str) -> None:
        """Without a pause. Raises TimeoutError."""
        self.pause_seconds, deadline = 0.0, time.monotonic() + SWITCH_SECONDS
        while self.seen != version:
            if time.monotonic() > deadline:
                raise TimeoutError(f"{self.model} is still answered by {self.seen}, not {version}")
            time.sleep(0.05)

    def _ask(self) -> None:
        body = {"model": self.model, "max_tokens": 16, "store": False}
        with httpx.Client(base_url=self.url, timeout=TIMEOUT_SECONDS) as client:
            while not self._over.wait(self.pause_seconds):
                messages = self.prompts[self.asked % len(self.prompts)].messages
                reply = _post(client, "/v1/chat/completions", {**body, "messages": messages})
                self.asked, self.failed = self.asked + 1, self.failed + (reply is None)
                self.seen = self.seen if reply is None else reply.json()["model"]
