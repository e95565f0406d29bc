"""What Ray must find in the environment before it is first imported: it reads some of it only then."""

from __future__ import annotations

import os
import secrets
from pathlib import Path


def prepare_environment() -> None:
    """Set what the user has not set. Call first thing in a process, before anything imports ray.

    A private cluster on this machine is guarded by a token that lives in memory: Ray itself would write one into the
    home folder. A cluster named by RAY_ADDRESS has its own way, given by RAY_AUTH_MODE and RAY_AUTH_TOKEN(_PATH).
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")  # the bars on the terminal are ours
    if not any(Path("/dev").glob("nvidia[0-9]*")) and not Path("/dev/kfd").exists():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")  # spares DeepSpeed's guess, and its warning about it
    if "RAY_ADDRESS" in os.environ:
        return
    os.environ.setdefault("RAY_worker_maximum_startup_concurrency", "4")  # or it warns of "8 workers" on two cores
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # Ray Data's actor pools warn of themselves on stderr
    if os.environ.setdefault("RAY_AUTH_MODE", "token") == "token" and "RAY_AUTH_TOKEN_PATH" not in os.environ:
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
