"""What kill -9 left at the end of SQLite's write-ahead log may be damaged in any way: no acknowledged vote goes."""

from __future__ import annotations

import shutil
import sqlite3
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import pytest

from bco_ray.storage.export import export, verify_segments
from bco_ray.storage.feedback_log import FeedbackLog, Vote

WRITER = Path(__file__).parent / "writer.py"
VOTES = 40
HEARD = [f"heard-{i}" for i in range(VOTES)]
DAMAGED = 16


@dataclass(frozen=True)
class Torn:
    """A storage directory as a killed writer left it. Bytes of the WAL after `acknowledged` belong to nobody's vote;
    up to `committed` they are a vote that was committed and not acknowledged."""

    storage: Path
    acknowledged: int
    committed: int


@pytest.fixture
def torn(faults: Any) -> Torn:
    outcome = faults.run(WRITER, faults.root, str(VOTES))
    assert (outcome.status, outcome.output.split()) == (-9, HEARD)
    commits, size = commit_ends((faults.root / "bco.db-wal").read_bytes())
    assert commits[-1] < size, "the last transaction has left something"
    return Torn(faults.root, commits[-2], commits[-1])


def commit_ends(wal: bytes) -> tuple[list[int], int]:
    """Where each commit of a write-ahead log ends, and the log itself (https://sqlite.org/fileformat2.html#walformat)."""
    page, _, salt = struct.unpack(">8xII8s", wal[:24])
    ends, end = [], 32
    while wal[end + 8 : end + 16] == salt:
        (pages_after_commit,) = struct.unpack(">4xI", wal[end : end + 8])
        end += 24 + page
        ends += [end] if pages_after_commit else []
    return ends, end


def somewhere(wal: bytearray, start: int, rng: Random) -> int:
    """Often near the start: what was not committed is a thousand times longer than the commit before it."""
    return start + rng.choice([0, rng.randrange(8000), rng.randrange(len(wal) - start)])


def cut(wal: bytearray, start: int, rng: Random) -> None:
    del wal[somewhere(wal, start, rng) :]


def garble(wal: bytearray, start: int, rng: Random) -> None:
    first = somewhere(wal, start, rng)
    last = rng.randint(first + 1, len(wal))
    wal[first:last] = rng.randbytes(last - first)


def flip(wal: bytearray, start: int, rng: Random) -> None:
    wal[somewhere(wal, start, rng)] ^= 1 << rng.randrange(8)


def zero(wal: bytearray, start: int, rng: Random) -> None:
    first = somewhere(wal, start, rng)
    wal[first:] = bytes(len(wal) - first)


def grow(wal: bytearray, start: int, rng: Random) -> None:
    wal += rng.randbytes(rng.randint(1, 100_000))


def repeat(wal: bytearray, start: int, rng: Random) -> None:
    """Old frames after the end, as a file system may show blocks it gave anew."""
    wal += wal[32:]


DAMAGES: list[Callable[[bytearray, int, Random], None]] = [cut, garble, flip, zero, grow, repeat]


def stored_keys(storage: Path) -> list[str]:
    with sqlite3.connect(storage / "bco.db") as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        return [key for (key,) in connection.execute("SELECT idempotency_key FROM votes ORDER BY seq")]


def check_whole(storage: Path, keys: list[str]) -> None:
    """The log holds these keys and can be used: it takes a vote again, another one, and exports both."""
    log = FeedbackLog.open(storage)
    again, created = log.add_vote(Vote(response_id="chatcmpl-1", label=True, user=HEARD[0]), HEARD[0])
    assert not created
    log.add_vote(Vote(response_id="chatcmpl-1", label=False, user="after"), "after")
    manifest = export(log, storage / "feedback")
    assert manifest is not None
    verify_segments(storage / "feedback", manifest)
    log.close()
    assert stored_keys(storage) == [*keys, "after"]
    assert (manifest.watermark, manifest.rows) == (len(keys) + 1,) * 2
    assert again.seq == 1


def test_undamaged(faults: Any, torn: Torn) -> None:
    check_whole(torn.storage, [*HEARD, "unheard"])


@pytest.mark.parametrize("index", ["stays", "gone"], ids="index {}".format)
def test_any_damage_behind_the_last_acknowledged_commit(faults: Any, torn: Torn, tmp_path: Path, index: str) -> None:
    """`index`: SQLite's `-shm` file, which is there after a kill and not after a reboot."""
    rounds = max(DAMAGED, faults.points)
    for i in range(rounds):
        damage, start = DAMAGES[i % len(DAMAGES)], torn.acknowledged if i % 2 else torn.committed
        storage = tmp_path / f"damaged-{i}"
        shutil.copytree(torn.storage, storage)
        wal = bytearray((storage / "bco.db-wal").read_bytes())
        damage(wal, start, faults.rng)
        (storage / "bco.db-wal").write_bytes(wal)
        if index == "gone":
            (storage / "bco.db-shm").unlink()
        print(f"{i}: {damage.__name__} after {start}, {len(wal)} bytes left")  # noqa: T201
        keys = stored_keys(storage)
        assert keys in ([HEARD, [*HEARD, "unheard"]] if start == torn.acknowledged else [[*HEARD, "unheard"]])
        check_whole(storage, keys)
        shutil.rmtree(storage)
    faults.report("torn log", damaged_tails=rounds, votes_acknowledged=rounds * VOTES, lost=0)
