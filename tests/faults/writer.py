"""Writes votes and says which are acknowledged; then one that nobody hears of; then dies within a transaction. No test.

python writer.py STORAGE HOW_MANY
"""

import os
import signal
import sys
from pathlib import Path

from bco_ray.storage.feedback_log import Choice, Completion, FeedbackLog, Vote

LARGE = "x" * 4000
HELLO = {"role": "user", "content": "hello"}


def vote(user):
    return Vote(response_id="chatcmpl-1", label=True, user=user)


class Deadly(list):
    """Kills the process after its last vote; they are more than SQLite keeps in memory."""

    def __iter__(self):
        for i in range(1500):
            yield Vote(response_id="chatcmpl-1", label=True, user=f"lost-{i}", correction=LARGE), f"lost-{i}"
        os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    log = FeedbackLog.open(Path(sys.argv[1]))
    log.add_completion(Completion("chatcmpl-1", 0.0, "m/1", "fp", [HELLO], [1], [Choice("hi", [1], "stop")], {}))
    for i in range(int(sys.argv[2])):
        log.add_vote(vote(f"heard-{i}"), f"heard-{i}")
        print(f"heard-{i}", flush=True)  # noqa: T201
    log.add_vote(vote("unheard"), "unheard")
    log.add_votes(Deadly())
