"""Imports modules once and then forks a process per line of stdin, so that each starts in milliseconds. No test.

A line is JSON: `argv` (a script and its arguments), `output` (a file for stdout and stderr) and `status` (a file that
gets the exit status, negative for a signal, when the process has ended). Answers with the process id.
"""

import importlib
import json
import os
import runpy
import select
import sys
import traceback
from pathlib import Path


def become(order):
    """In the child: run the script, never return."""
    os.setsid()
    output = os.open(order["output"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    for target, source in ((0, os.open(os.devnull, os.O_RDONLY)), (1, output), (2, output)):
        os.dup2(source, target)
    sys.argv, code = order["argv"], 1
    try:
        runpy.run_path(order["argv"][0], run_name="__main__")
        code = 0
    except SystemExit as leaving:
        code = int(leaving.code or 0)
    except BaseException:  # noqa: BLE001
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        os._exit(code)


def bury(statuses):
    """Write down how each process that has ended did."""
    while statuses:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if not pid:
            return
        path = Path(statuses.pop(pid))
        scratch = path.with_suffix(".scratch")
        scratch.write_text(str(os.waitstatus_to_exitcode(status)))
        scratch.replace(path)


def main():
    for name in sys.argv[1:]:
        importlib.import_module(name)
    print("ready", flush=True)  # noqa: T201
    statuses = {}
    while True:
        if select.select([0], [], [], 0.01)[0]:
            line = b""
            while not line.endswith(b"\n"):  # unbuffered: select knows nothing of what a reader holds back
                if not (more := os.read(0, 1)):
                    return
                line += more
            order = json.loads(line)
            pid = os.fork()
            if pid == 0:
                become(order)
            statuses[pid] = order["status"]
            print(pid, flush=True)  # noqa: T201
        bury(statuses)


if __name__ == "__main__":
    main()
