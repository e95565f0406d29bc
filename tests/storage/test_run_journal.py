"""The journal: whole lines from many writers, what a full disk tore passed over, never the reason that a run ends."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from bco_ray.storage.run_journal import JournalTail, RunJournal

WRITER = """
import sys
from pathlib import Path
from bco_ray.storage.run_journal import RunJournal

journal = RunJournal(Path(sys.argv[1]))
for number in range(int(sys.argv[3])):
    journal.write("event", writer=int(sys.argv[2]), number=number, text="x" * (number % 700))
"""


def test_events_in_order_with_a_time(tmp_path: Path) -> None:
    journal = RunJournal(tmp_path)
    assert journal.read() == []
    assert journal.mark == 0
    journal.write("first", step=3)
    size = journal.mark
    journal.write("second", error='quotes " and \n lines, {"at": 1}', path=tmp_path)
    first, second = journal.read()
    assert (first["event"], first["step"]) == ("first", 3)
    assert first["at"] <= second["at"]
    assert (second["error"], second["path"]) == ('quotes " and \n lines, {"at": 1}', str(tmp_path))
    assert journal.read(since=size) == [second]


def test_many_processes_write_whole_lines(tmp_path: Path) -> None:
    command = [sys.executable, "-c", WRITER, str(tmp_path)]
    writers = [subprocess.Popen([*command, str(number), "400"]) for number in range(4)]
    assert [writer.wait(60) for writer in writers] == [0] * 4
    events = RunJournal(tmp_path).read()
    assert len(events) == len((tmp_path / "events.jsonl").read_text().splitlines()) == 1600
    for number in range(4):
        assert [e["number"] for e in events if e["writer"] == number] == list(range(400))


@pytest.mark.parametrize("kept", [0, 1, 7, 12, -2, -1])
def test_a_torn_line_takes_no_other_with_it(tmp_path: Path, kept: int) -> None:
    """The next event follows at once, in the same line."""
    journal = RunJournal(tmp_path)
    journal.write("before")
    whole = journal.path.read_bytes()
    with journal.path.open("ab") as file:
        file.write(whole[:kept])
    assert [event["event"] for event in journal.read()] == ["before"]
    journal.write("after")
    journal.write("later")
    assert [event["event"] for event in journal.read()] == ["before", "after", "later"]


def test_what_is_no_event_is_passed_over(tmp_path: Path) -> None:
    journal = RunJournal(tmp_path)
    journal.path.write_bytes(
        b'\n{}\n[1]\n7\n\xff\xfe\n{"at": 1}\n\0\0\0\n{"at": 1, "event": "good"}\n{"at": 2, "event": "half'
    )
    assert journal.read() == [{"at": 1, "event": "good"}]


@pytest.mark.parametrize("call", ["open", "write"])
def test_a_full_disk_stops_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    journal = RunJournal(tmp_path)
    journal.write("before")

    def full(*_: Any) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, call, full)
        journal.write("lost")
    journal.write("after")
    assert [event["event"] for event in journal.read()] == ["before", "after"]


def test_a_disk_that_gets_full_in_the_middle_of_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The operating system says so by writing less than it was given."""
    journal, write = RunJournal(tmp_path), os.write
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", lambda descriptor, data: write(descriptor, data[:20]))
        journal.write("torn")
    journal.write("after")
    assert [event["event"] for event in journal.read()] == ["after"]


def test_what_cannot_be_read_is_nothing_for_now(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    journal, tail = RunJournal(tmp_path), JournalTail(tmp_path)
    journal.write("event")

    def failing(*_: Any, **__: Any) -> Any:
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", failing)
        assert journal.read() == tail.read() == []
    assert [event["event"] for event in tail.read()] == ["event"]


def test_the_tail_gives_each_event_once_and_whole(tmp_path: Path) -> None:
    journal, tail = RunJournal(tmp_path), JournalTail(tmp_path)
    assert tail.read() == []
    journal.write("first")
    journal.write("second")
    assert [event["event"] for event in tail.read()] == ["first", "second"]
    line = json.dumps({"at": 1, "event": "third"}).encode() + b"\n"
    for part in (line[:9], line[9:-1]):
        with journal.path.open("ab") as file:
            file.write(part)
        assert tail.read() == []
    with journal.path.open("ab") as file:
        file.write(line[-1:])
    assert [event["event"] for event in tail.read()] == ["third"]
    assert tail.read() == []
