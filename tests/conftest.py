"""Shared by all tests: one private Ray cluster per session, started when a test first asks for it."""

from __future__ import annotations

import os
import shutil
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from bco_ray.config.environment import prepare_environment

os.environ.pop("RAY_ADDRESS", None)
os.environ.setdefault("OMP_NUM_THREADS", "1")
prepare_environment()


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[None]:
    """A local cluster with 4 (logical) CPUs, its own directory and token; gone at the end of the session."""
    import ray

    from bco_ray.pipeline.cluster import configure_data

    directory = tempfile.mkdtemp(prefix="bco-", dir="/tmp")  # a socket's path must stay short
    ray.init(
        address="local", num_cpus=4, object_store_memory=300_000_000, include_dashboard=False, _temp_dir=directory,
        log_to_driver=False, logging_level="WARNING",
    )  # fmt: skip
    configure_data()
    yield
    ray.shutdown()
    shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The human votes that live beside the repository in some checkouts."""
    directory = Path(__file__).parents[2] / "shared" / "data"
    if not directory.is_dir():
        pytest.skip("needs ../shared/data (real human votes), which is not part of this repository")
    return directory


@pytest.fixture(scope="session")
def server_port() -> int:
    """Where Ray Serve listens in this session: once started it keeps its port until the cluster goes."""
    with socket.create_server(("127.0.0.1", 0)) as probe:  # the system's own range, beyond what Ray hands to workers
        return int(probe.getsockname()[1])
