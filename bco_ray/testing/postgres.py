"""A PostgreSQL of its own for a test session."""

from __future__ import annotations

import os
import pwd
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

SECONDS = 60


@contextmanager
def postgresql_process(binaries: Path) -> Iterator[str]:
    """Its URL; gone at the end. PostgreSQL refuses to run as root: then it runs as its own user, `postgres`."""
    directory = Path(tempfile.mkdtemp(prefix="bco-pg-", dir="/tmp"))
    as_user: list[str] = []
    if os.geteuid() == 0:
        as_user = ["runuser", "-u", "postgres", "--"]
        user = pwd.getpwnam("postgres")
        os.chown(directory, user.pw_uid, user.pw_gid)
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    data = directory / "data"
    make = [str(binaries / "initdb"), "-D", str(data), "-U", "bco", "-A", "trust", "-N"]
    options = ["-p", str(port), "-c", "listen_addresses=127.0.0.1", "-c", "unix_socket_directories=", "-c", "fsync=off"]
    process = None
    try:
        subprocess.run([*as_user, *make], check=True, capture_output=True, timeout=SECONDS, cwd="/tmp")
        with (directory / "log").open("w") as log:
            command = [*as_user, str(binaries / "postgres"), "-D", str(data), *options]
            process = subprocess.Popen(command, stdout=log, stderr=log, cwd="/tmp")
        url = f"postgresql://bco@127.0.0.1:{port}/postgres"
        wait_until_ready(url)
        yield url
    finally:
        if process:
            stop = [str(binaries / "pg_ctl"), "stop", "-D", str(data), "-m", "immediate", "-w"]
            subprocess.run([*as_user, *stop], capture_output=True, timeout=SECONDS, cwd="/tmp")
            process.wait(SECONDS)
        shutil.rmtree(directory, ignore_errors=True)


def wait_until_ready(url: str) -> None:
    """Raises the last error."""
    import psycopg

    deadline = time.monotonic() + SECONDS
    while True:
        try:
            psycopg.connect(url, connect_timeout=5).close()
        except psycopg.OperationalError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)
        else:
            return
