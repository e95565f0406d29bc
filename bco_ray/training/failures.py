"""From what went wrong to what to do about it: two pure functions, so that every rule can be read and tested.

A worker group fails all at once: one worker has the cause, the others lose their connection to it. `cause_of` picks the
cause out of the noise; `decide` says whether, when and how large to try again.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

Kind = Literal["refused", "hung", "out_of_memory", "lost", "no_room", "storage", "error", "connection"]
"""`refused`: would fail again. `lost`: a process or node is gone. `connection`: a peer's failure, as others see it."""

_BY_WEIGHT: tuple[Kind, ...] = (
    "refused", "hung", "out_of_memory", "storage", "error", "lost", "no_room", "connection",
)  # fmt: skip
"""Of several at once the first is the cause: a process that is gone explains less than the error before its end."""

_CONNECTION = re.compile(
    r"gloo|nccl|connection (closed|reset|refused|was)|broken pipe|time(d )?out|processgroup|closed by peer",
    re.IGNORECASE,
)
_SAY_SO_IN_WORDS = frozenset({"", "RuntimeError", "TimeoutError"})
_SAY_SO_BY_CLASS = re.compile(r"Dist\w*Error|Connection\w*Error|BrokenPipeError")
"""What torch and the system raise when a peer is gone; the words alone are in many another message."""

_MEMORY = re.compile(
    r"out of memory|can't allocate memory|cannot allocate memory|OutOfMemory|MemoryError|_ALLOC_FAILED", re.IGNORECASE
)
_LOST = re.compile(
    r"ActorDied|ActorUnavailable|HealthCheckFailed|RayActorError|NodeDied|WorkerCrashed|OwnerDied|preempt",
    re.IGNORECASE,
)
_STORAGE_ERRORS = frozenset({"StorageError", "DamagedError", "OSError", "IOError", "FileNotFoundError"})
"""Whatever they quote: an object store may time out, too."""

RETRY_SECONDS = 5.0
LONGEST_RETRY_SECONDS = 120.0


@dataclass(frozen=True)
class Symptom:
    """What one worker (or Ray, about it) said: an exception's class and its text. `rank` None: not a worker's."""

    type: str
    message: str
    rank: int | None = None
    at: float = 0.0
    kind: Kind | None = None
    """Where it is known already."""


@dataclass(frozen=True)
class Cause:
    """The failure that explains the others, in one line."""

    kind: Kind
    message: str


@dataclass(frozen=True)
class Situation:
    """What a decision depends on. `room`: workers that the cluster has place for now.

    `in_a_row`: failures without a new checkpoint in between, this one included. `repeated`: this very error came the
    last time too.
    """

    workers: int
    least: int
    most: int
    room: int
    in_a_row: int
    max_failures: int
    repeated: bool
    can_halve: bool


@dataclass(frozen=True)
class Retry:
    """Try again with so many workers, after a pause; with micro-batches of half the tokens if memory was short."""

    workers: int
    wait_seconds: float
    halve_micro_batch: bool = False


@dataclass(frozen=True)
class GiveUp:
    """Trying again would not help."""

    reason: str


def kind_of(symptom: Symptom) -> Kind:
    """What sort of failure that is, by its class first and its words second."""
    if symptom.kind is not None:
        return symptom.kind
    text = f"{symptom.type}: {symptom.message}"
    if symptom.type in _STORAGE_ERRORS:
        return "storage"
    if _MEMORY.search(text):
        return "out_of_memory"
    if _LOST.search(symptom.type):
        return "lost"
    in_words = symptom.type in _SAY_SO_IN_WORDS and _CONNECTION.search(text)
    return "connection" if in_words or _SAY_SO_BY_CLASS.fullmatch(symptom.type) else "error"


def silent(symptoms: Iterable[Symptom], hosts: Mapping[int, str]) -> list[Symptom]:
    """Where all that is known are lost connections: the workers that did not even say that are the ones that are gone.

    `hosts`: where the workers of the group were, by rank.
    """
    known = list(symptoms)
    told = {symptom.rank for symptom in known}
    gone = sorted(hosts.keys() - told)
    if not gone or any(kind_of(symptom) != "connection" for symptom in known):
        return []
    return [Symptom("", f"its process or its node ({hosts[rank]}) is gone", rank, kind="lost") for rank in gone]


def cause_of(symptoms: Iterable[Symptom]) -> Cause:
    """The weightiest symptom, of equal ones the earliest."""
    known = sorted(((_BY_WEIGHT.index(kind_of(s)), s.at, n, s) for n, s in enumerate(symptoms)), key=lambda k: k[:3])
    if not known:
        return Cause("error", "training failed and nobody said why")
    symptom = known[0][-1]
    who = "" if symptom.rank is None else f"worker {symptom.rank}: "
    return Cause(kind_of(symptom), f"{who}{_line(symptom)}")


def decide(cause: Cause, now: Situation) -> Retry | GiveUp:
    """What to do after a failure.

    A run that makes checkpoints is never given up; one that fails `max_failures` + 1 times at the same place is.
    """
    if cause.kind == "refused":
        return GiveUp(cause.message)
    if cause.kind == "error" and now.repeated:
        return GiveUp(f"{cause.message} (twice in a row: it would come again)")
    if cause.kind == "out_of_memory" and not now.can_halve:
        return GiveUp(
            f"{cause.message}. Micro-batches are as small as they get: set training.gradient_checkpointing, a higher "
            "training.deepspeed.zero_stage or offload, or a smaller training.max_length."
        )
    bounded = cause.kind == "out_of_memory" and now.max_failures > 0  # by how often a micro-batch can be halved
    if not bounded and cause.kind != "no_room" and now.in_a_row > now.max_failures:
        times = "once" if now.in_a_row == 1 else f"{now.in_a_row} times in a row without a new checkpoint"
        return GiveUp(f"{cause.message} (failed {times}; training.max_failures is {now.max_failures})")
    pause = min(LONGEST_RETRY_SECONDS, RETRY_SECONDS * 2 ** max(0, now.in_a_row - 1))
    if cause.kind == "no_room":  # whatever is counted: there was none for so many
        return Retry(size_for(now, now.workers - 1), 0.0)
    return Retry(size_for(now), pause, cause.kind == "out_of_memory")


def size_for(now: Situation, most: int | None = None) -> int:
    """Workers for the next attempt: as many as there is room for, within what the spec (and `most`) allows."""
    return max(now.least, min(now.most, now.room, now.most if most is None else most))


def _line(symptom: Symptom) -> str:
    """The first line, with the class if it is not in it: advice follows. A traceback says what happened last."""
    lines: Sequence[str] = [line.strip() for line in symptom.message.splitlines() if line.strip()] or [""]
    said = lines[-1 if "Traceback (most recent call last)" in symptom.message else 0]
    return said if symptom.type in said or not symptom.type else f"{symptom.type}: {said}".rstrip(": ")
