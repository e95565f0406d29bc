"""A server replica over an engine that answers at once; says at which port it listens. No test.

python replica.py STORAGE [WRITES]: it kills itself when so many are on disk, before it acknowledges the last.
"""

import os
import signal
import socket
import sys
import threading
from pathlib import Path

import uvicorn

from bco_ray.serving.args import Served
from bco_ray.serving.engines.protocol import Health, Load, TokenEvent
from bco_ray.serving.http.api import create_api
from bco_ray.serving.versions.catalog import FixedCatalog, Target
from bco_ray.storage.feedback_log import FeedbackLog


class Echo:
    """Says the same to everybody."""

    async def generate(self, request):
        yield TokenEvent([1], "Hi")
        yield TokenEvent([2], " there", "stop", True)

    async def health(self):
        return Health(True)

    async def load(self):
        return Load(0, 0)


class Words:
    """A tokenizer that knows one prompt."""

    def apply_chat_template(self, messages, **options):
        return {"input_ids": [1, 2, 3]}


class Mortal(FeedbackLog):
    """Dies after `left` writes."""

    left = -1
    turn = threading.Lock()

    def add_all(self, answers, ballots, *, oldest=0.0):
        return self._count(super().add_all(answers, ballots, oldest=oldest))

    def _count(self, written):
        with self.turn:
            self.left -= 1
            if self.left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
        return written


if __name__ == "__main__":
    log = Mortal.open(Path(sys.argv[1]))
    log.left = int(sys.argv[2]) if len(sys.argv) > 2 else -1
    served = Served("helper/1", (), "fp", 0, 512, 16, Path())
    with socket.create_server(("127.0.0.1", 0)) as listener:
        print(listener.getsockname()[1], flush=True)  # noqa: T201
        api = create_api(FixedCatalog(Target(served, Words(), Echo())), log)
        uvicorn.Server(uvicorn.Config(api, log_level="error")).run(sockets=[listener])
