"""On the PYTHONPATH of a process, makes it and all its descendants killable at a chosen file operation. No test.

Below BCO_FAULT_ROOT it sees renames, links, removals, new directories and files opened for writing, each just *before*
it happens. Every one becomes a line `pid<TAB>operation<TAB>path` in BCO_FAULT_LOG. While the file BCO_FAULT_KILL exists
it says which operation is the last: the nth, counted over all processes, that matches `operation` and `path`. Whoever
comes to it takes the file away, kills everybody with the same BCO_FAULT_MARK if `everyone` is set, and itself.

Python's own operations only: what SQLite, torch or Arrow write from C is not seen.
"""

import contextlib
import importlib.machinery
import importlib.util
import json
import os
import re
import signal
import sys

ROOT = os.environ.get("BCO_FAULT_ROOT", "").rstrip("/") + "/"
LOG = os.environ.get("BCO_FAULT_LOG", "")
KILL = os.environ.get("BCO_FAULT_KILL", "")
MARK = f"BCO_FAULT_MARK={os.environ.get('BCO_FAULT_MARK', '')}\0".encode()

WATCHED = {
    "os.rename": (1, 3),  # where the path that counts and its directory's descriptor stand in the event
    "os.link": (1, 3),
    "os.mkdir": (0, 2),
    "os.remove": (0, 1),
    "os.rmdir": (0, 1),
    "open": (0, None),
}
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT


def watch(event, args):
    """The audit hook: called for everything, so it leaves at once if the event is none of ours."""
    position = WATCHED.get(event)
    if position is None or (event == "open" and not (args[2] or 0) & WRITES):
        return
    with contextlib.suppress(Exception):  # a process under test must never see an error of ours
        path = absolute(args[position[0]], -1 if position[1] is None else args[position[1]])
        if path.startswith(ROOT):
            react(event.removeprefix("os."), path.removeprefix(ROOT))


def absolute(path, descriptor):
    base = os.readlink(f"/proc/self/fd/{descriptor}") if descriptor >= 0 else os.getcwd()  # noqa: PTH109, PTH115
    return os.path.normpath(os.path.join(base, os.fsdecode(path)))  # noqa: PTH118


def react(operation, path):
    if LOG:
        append(LOG, f"{os.getpid()}\t{operation}\t{path}\n")
    if KILL and os.path.exists(KILL):  # noqa: PTH110
        with open(KILL) as file:  # noqa: PTH123
            kill = json.load(file)
        matches = re.fullmatch(kill["operation"], operation) and re.search(kill["path"], path)
        if matches and append(kill["count"], ".") == kill["nth"]:
            fire(kill)


def append(path, text):
    """One write; returns where it ended, which is the order among all who append."""
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        os.write(descriptor, text.encode())
        return os.lseek(descriptor, 0, os.SEEK_CUR)
    finally:
        os.close(descriptor)


def fire(kill):
    os.unlink(KILL)  # noqa: PTH108
    if kill["everyone"]:
        for pid in [int(name) for name in os.listdir("/proc") if name.isdigit()]:  # noqa: PTH208
            if pid != os.getpid() and is_marked(pid):
                with contextlib.suppress(OSError):
                    os.kill(pid, signal.SIGKILL)
    os.kill(os.getpid(), signal.SIGKILL)


def is_marked(pid):
    with contextlib.suppress(OSError), open(f"/proc/{pid}/environ", "rb") as file:  # noqa: PTH123
        return MARK in file.read()
    return False


def run_the_other():
    """The sitecustomize that ours hides, if there is one."""
    here = os.path.dirname(os.path.abspath(__file__))  # noqa: PTH100, PTH120
    others = [path for path in sys.path if os.path.abspath(path) != here]  # noqa: PTH100
    spec = importlib.machinery.PathFinder.find_spec("sitecustomize", others)
    if spec is not None and spec.loader is not None:
        spec.loader.exec_module(importlib.util.module_from_spec(spec))


run_the_other()
if ROOT != "/":
    sys.addaudithook(watch)
