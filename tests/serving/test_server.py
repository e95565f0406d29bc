"""The real thing once: Ray Serve, HTTP, the stock client, a vote, an error, a stop."""

from __future__ import annotations

import inspect
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from bco_ray.errors import ServingError
from bco_ray.serving.app import build
from bco_ray.serving.args import ServeArgs
from bco_ray.serving.server import check_free, start_server
from bco_ray.storage.feedback_log import FeedbackLog
from bco_ray.testing.tiny import write_tiny_model

HI: Any = [{"role": "user", "content": "Hello"}]


def free_port() -> int:
    """The system's ephemeral ports start at 32768."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


@pytest.fixture
def args(tmp_path: Path) -> ServeArgs:
    directory = write_tiny_model(tmp_path / "model")
    return ServeArgs(
        model_id="helper/3", model_dir=directory, storage=tmp_path / "storage", aliases=["helper@prod"], num_cpus=0.5
    )


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.4", "example.com"])
def test_only_loopback_is_served_without_keys(args: ServeArgs, host: str) -> None:
    with pytest.raises(ServingError, match="loopback"):
        start_server(args, host=host, port=free_port())


def test_serve_reads_the_schema_of_its_args_from_the_builder() -> None:
    """Ray Serve looks at the annotation itself, which must not be a string."""
    assert inspect.signature(build).parameters["args"].annotation is ServeArgs


def test_the_api_needs_no_ray() -> None:
    code = "import sys, bco_ray.serving.http.api; sys.exit('ray' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=120, check=False).returncode == 0


def test_a_taken_port_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(ServingError, match="Choose another port"):
        check_free("127.0.0.1", taken.getsockname()[1])


@pytest.mark.ray
def test_a_server_on_ray(ray_cluster: Any, server_port: int, args: ServeArgs) -> None:
    handle = start_server(args, port=server_port)
    try:
        client = openai.OpenAI(base_url=f"{handle.url}/v1", api_key="unused", max_retries=0, timeout=60)
        answer = client.chat.completions.create(model="helper@prod", messages=HI, temperature=0, max_tokens=8)
        assert answer.model == "helper/3"
        chunks = list(
            client.chat.completions.create(model="helper", messages=HI, temperature=0, max_tokens=8, stream=True)
        )
        assert "".join(c.choices[0].delta.content or "" for c in chunks) == answer.choices[0].message.content
        client.chat.completions.update(chunks[0].id, metadata={"feedback": "down"})
        events, _ = FeedbackLog.open(args.storage).list_votes(response_id=chunks[0].id)
        assert [(e.vote.label, e.model) for e in events] == [(False, "helper/3")]
        with pytest.raises(openai.NotFoundError) as caught:
            client.chat.completions.create(model="other", messages=HI)
        assert caught.value.code == "model_not_found"
        assert caught.value.request_id
        missing = httpx.get(f"{handle.url}/nothing", timeout=30)
        assert (missing.status_code, missing.json()["error"]["code"]) == (404, "not_found")
        assert len(missing.headers.get_list("x-request-id")) == 1
        with pytest.raises(ServingError, match="runs a server already"):
            start_server(args, port=server_port)
    finally:
        handle.stop()
        handle.stop()
    assert httpx.get(f"{handle.url}/healthz", timeout=10).status_code == 404  # Serve's proxy, with nothing behind it
