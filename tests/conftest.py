"""Shared by all tests: one private Ray cluster per session, started when a test first asks for it."""

from __future__ import annotations

import os
import shutil
import socket
import sys
import tempfile
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from bco_ray.config.environment import prepare_environment

TALLIES = pytest.StashKey[dict[str, Counter[str]]]()
CLUSTER = pytest.StashKey[str]()

os.environ.pop("RAY_ADDRESS", None)
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("RAY_worker_niceness", "0")  # Ray's own is 15: beside the other process of tests they starve
prepare_environment()


@pytest.fixture(scope="session")
def ray_cluster(pytestconfig: pytest.Config) -> Iterator[None]:
    """A local cluster with 4 (logical) CPUs, its own directory and token; gone at the end of the session."""
    import ray

    from bco_ray.pipeline.cluster import configure_data

    directory = tempfile.mkdtemp(prefix="bco-", dir="/tmp")  # a socket's path must stay short
    ray.init(
        address="local", num_cpus=4, object_store_memory=300_000_000, include_dashboard=False, _temp_dir=directory,
        log_to_driver=False, logging_level="WARNING",
    )  # fmt: skip
    configure_data()
    pytestconfig.stash[CLUSTER] = ray.get_runtime_context().gcs_address
    yield
    del pytestconfig.stash[CLUSTER]
    ray.shutdown()
    shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture(autouse=True)
def no_other_cluster(pytestconfig: pytest.Config) -> Iterator[None]:
    """Ray starts where it is first used, unasked. A test that makes it do so fails: its cluster would outlive it."""
    yield
    ray = sys.modules.get("ray")
    if ray is None or not hasattr(ray, "is_initialized") or not ray.is_initialized():
        return
    if ray.get_runtime_context().gcs_address != pytestconfig.stash.get(CLUSTER, None):
        ray.shutdown()
        pytest.fail("started a Ray cluster: use the fixture `ray_cluster`, or nothing that needs Ray")


@pytest.fixture
def no_models() -> Any:
    """The catalog of a server that serves none."""
    from bco_ray.serving.engines.protocol import Health, Load

    async def health() -> Health:
        return Health(True)

    async def load() -> Load:
        return Load(0, 0)

    return SimpleNamespace(models=list, refused=dict, health=health, load=load)


@pytest.hookimpl(tryfirst=True)  # xdist's own hook reads the marks; with pytest 9.2 it can tell nobody of them
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests run in two processes (`-n 2`): a module in one of them, all that need a Ray cluster, the session's or their
    own, in the same. Two trainings at once would each take more than twice as long.
    """
    with_cluster = {item.path for item in items if needs_cluster(item)}
    for item in items:
        item.add_marker(pytest.mark.xdist_group("ray" if item.path in with_cluster else item.path.name))


def needs_cluster(item: pytest.Item) -> bool:
    return "ray_cluster" in getattr(item, "fixturenames", ()) or item.get_closest_marker("e2e") is not None


@pytest.fixture
def tally(pytestconfig: pytest.Config) -> Callable[[str, dict[str, int]], None]:
    """Counts to add up under a name; the last lines of the session show the sums."""
    return partial(add, pytestconfig)


def add(config: pytest.Config, name: str, counts: dict[str, int]) -> None:
    config.stash.setdefault(TALLIES, {}).setdefault(name, Counter()).update(counts)


def pytest_sessionfinish(session: pytest.Session) -> None:
    """One of the two processes has no last lines of its own: it passes on what it counted."""
    if hasattr(session.config, "workeroutput"):
        tallies = session.config.stash.get(TALLIES, {})
        session.config.workeroutput["tallies"] = {name: dict(counts) for name, counts in tallies.items()}


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """Here, in the process that has, it is added. Only this conftest is loaded there, none of the folders below."""
    for name, counts in getattr(node, "workeroutput", {}).get("tallies", {}).items():
        add(node.config, name, counts)


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """`faults: feedback log: 12 kills, 1,834 votes acknowledged, 0 lost`, one line per name."""
    for name, counts in config.stash.get(TALLIES, {}).items():
        words = ", ".join(f"{number:,} {what.replace('_', ' ')}" for what, number in counts.items())
        terminalreporter.write_line(f"{name}: {words}")


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


@pytest.fixture(scope="session")
def s3_endpoint() -> Iterator[str]:
    """An S3 server's URL: moto's, on loopback, or the one (MinIO, AWS) that BCO_TEST_S3_ENDPOINT names."""
    if given := os.environ.get("BCO_TEST_S3_ENDPOINT"):
        yield given
        return
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture(scope="module")
def bucket(s3_endpoint: str) -> Iterator[str]:
    """A new bucket's URI, the environment pointing at its server."""
    import pyarrow.fs

    name = f"bco-test-{uuid.uuid4().hex}"  # a real server remembers earlier runs
    with pytest.MonkeyPatch.context() as patch:
        for variable in ("AWS_ENDPOINT_URL_S3", "AWS_DEFAULT_REGION", "AWS_SESSION_TOKEN", "AWS_PROFILE"):
            patch.delenv(variable, raising=False)
        patch.setenv("AWS_ACCESS_KEY_ID", os.environ.get("BCO_TEST_S3_KEY", "key"))
        patch.setenv("AWS_SECRET_ACCESS_KEY", os.environ.get("BCO_TEST_S3_SECRET", "secret"))
        patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        patch.setenv("AWS_REGION", "us-east-1")
        patch.setenv("AWS_ENDPOINT_URL", s3_endpoint)
        scheme, _, host = s3_endpoint.partition("://")
        pyarrow.fs.S3FileSystem(scheme=scheme, endpoint_override=host, allow_bucket_creation=True).create_dir(name)
        yield f"s3://{name}"


@pytest.fixture(scope="session")
def postgresql_server() -> Iterator[str]:
    """The URL of a PostgreSQL started for this session, or of the one BCO_TEST_POSTGRESQL names; else skips."""
    if given := os.environ.get("BCO_TEST_POSTGRESQL"):
        yield given
        return
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/pg_ctl"))
    if not found:
        pytest.skip("needs PostgreSQL (apt-get install postgresql), or BCO_TEST_POSTGRESQL")
    from bco_ray.testing.postgres import postgresql_process

    with postgresql_process(found[-1].parent) as url:
        yield url


@pytest.fixture
def postgresql(postgresql_server: str) -> Iterator[str]:
    """The URL of an empty database."""
    import psycopg

    name = f"bco_{uuid.uuid4().hex}"
    with psycopg.connect(postgresql_server, autocommit=True) as server:
        server.execute(f"create database {name}")
    yield f"{postgresql_server.rsplit('/', 1)[0]}/{name}"
    with psycopg.connect(postgresql_server, autocommit=True) as server:
        server.execute(f"drop database {name} with (force)")
