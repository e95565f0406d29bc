"""Shared by all tests: one private Ray cluster per session, started when a test first asks for it."""

from __future__ import annotations

import os
import shutil
import socket
import tempfile
import uuid
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


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests run in two processes (`-n 2`): a module in one of them, all that use the session's cluster in the same."""
    with_cluster = {item.path for item in items if "ray_cluster" in getattr(item, "fixturenames", ())}
    for item in items:
        item.add_marker(pytest.mark.xdist_group("ray" if item.path in with_cluster else str(item.path)))


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
