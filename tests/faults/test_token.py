"""A Ray head as cluster.yaml starts it, and somebody without the token at each port that it listens on.

Whatever Ray's own descriptions name is called: every method of every service, every route. What answers nevertheless is
written down here and in docs/cluster.md, and is nothing but health and metrics.
"""

from __future__ import annotations

import importlib
import os
import pkgutil
import re
import secrets
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import httpx
import psutil
import pytest
import ray.core.generated
import ray.dashboard

from bco_ray.testing import ray_head

pytestmark = [pytest.mark.ray, pytest.mark.e2e, pytest.mark.soak, pytest.mark.timeout(900)]

HEALTH = "/grpc.health.v1.Health/Check"
"""Says that the process serves, and nothing more."""

OPEN_PATHS = {
    "/",
    "/favicon.ico",
    "/api/authentication_mode",
    "/api/healthz",
    "/api/gcs_healthz",
    "/api/local_raylet_healthz",
}
"""The dashboard's empty page, whether there is a token, and health."""

METRICS = {"metrics-export-port", "AUTOSCALER_METRIC_PORT", "DASHBOARD_METRIC_PORT"}
"""Where Ray asks nobody for a token: what Prometheus reads. docs/cluster.md says what guards them."""

OBJECTS = [f"/ray.rpc.ObjectManagerService/{method}" for method in ("Push", "Pull", "FreeObjects")]
"""Not among the descriptions that come with Python."""

SECONDS = 20


@dataclass(frozen=True)
class Head:
    """A cluster of a head alone, and where its processes listen: (address, port)."""

    token: str
    ports: dict[str, int]
    address: str
    listening: list[tuple[str, int]]

    def name(self, port: int) -> str:
        """By which Ray knows it; a worker's has none."""
        return next((name for name, one in self.ports.items() if one == port), "worker")


@pytest.fixture
def head(faults: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Head]:
    """One that runs with its own token, and an actor, so that a worker listens too."""
    token, temporary = secrets.token_hex(32), tempfile.mkdtemp(prefix="bco-", dir="/tmp")
    file = Path(temporary) / "token"
    file.touch(mode=0o600)
    file.write_text(token)
    for name in ("RAY_AUTH_TOKEN", "RAY_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(file))
    ports = ray_head.free_ports()
    address = f"{ray.util.get_node_ip_address()}:{ports['port']}"
    try:
        child = faults.start(*ray_head.head_command(ports, temporary), **ray_head.head_environment(ports))
        up = [port for name, port in ports.items() if name != "object-manager-port"]
        there = lambda: {port for _, port in listening(faults)} >= set(up)  # noqa: E731
        assert faults.until(lambda: child.ended() is not None or there(), 240), (ports, listening(faults), child.output)
        assert child.ended() is None, child.output[-4000:]
        held = faults.start(sys.executable, "-c", HOLD, address)
        assert faults.until(lambda: "it is there" in held.output or held.ended() is not None, 180), held.output[-4000:]
        assert held.ended() is None, held.output[-4000:]
        yield Head(token, ports, address, sorted(listening(faults)))
    finally:
        faults.end_all()
        shutil.rmtree(temporary, ignore_errors=True)


HOLD = """
import sys, time, ray
ray.init(sys.argv[1], log_to_driver=False, logging_level='ERROR')
one = ray.remote(num_cpus=0)(type('One', (), {'hello': lambda self: 'it is there'})).remote()
print(ray.get(one.hello.remote()), flush=True)
time.sleep(3600)
"""


def listening(faults: Any) -> set[tuple[str, int]]:
    found = set()
    for pid in faults.running():
        try:
            connections = psutil.Process(pid).net_connections(kind="tcp")
        except psutil.Error:
            continue
        found |= {(one.laddr.ip, one.laddr.port) for one in connections if one.status == psutil.CONN_LISTEN}
    return found


def reach(host: str, port: int) -> str:
    """Where to connect to; every address is this machine."""
    host = host.removeprefix("::ffff:")
    return f"{'127.0.0.1' if host in {'::', '0.0.0.0'} else host}:{port}"


def methods() -> list[str]:
    """All that Ray describes."""
    found = {HEALTH, *OBJECTS}
    for module in pkgutil.iter_modules(ray.core.generated.__path__):
        if module.name.endswith("_pb2"):
            described = importlib.import_module(f"ray.core.generated.{module.name}").DESCRIPTOR
            services = described.services_by_name.values()
            found |= {f"/{service.full_name}/{method.name}" for service in services for method in service.methods}
    return sorted(found)


def routes() -> list[tuple[str, str]]:
    """(method, path) of all that the dashboard and its agents are written to answer."""
    sources = (path.read_text() for path in Path(ray.dashboard.__file__).parent.rglob("*.py"))
    found = {
        match for text in sources for match in re.findall(r'routes\.(get|post|put|delete|patch)\(\s*"(/[^"]*)"', text)
    }
    return sorted((verb, re.sub(r"\{.*?\}", "x", path)) for verb, path in found)


def speaks_grpc(place: str) -> bool:
    return call(place, HEALTH) != "UNAVAILABLE"


def call(place: str, method: str, token: str | None = None) -> str:
    """The status: `OK` if it was answered."""
    with grpc.insecure_channel(place, options=[("grpc.enable_http_proxy", 0)]) as channel:
        return call_on(channel, method, token)


def call_on(channel: grpc.Channel, method: str, token: str | None = None) -> str:
    metadata = [("authorization", f"Bearer {token}")] if token else []
    try:
        channel.unary_unary(method)(b"", timeout=SECONDS, metadata=metadata)
    except grpc.RpcError as error:
        return str(error.code().name)  # type: ignore[attr-defined]
    return "OK"


def test_without_the_token_every_port_refuses(head: Head, faults: Any) -> None:
    refused, unguarded = 0, set()
    for host, port in head.listening:
        place, name = reach(host, port), head.name(port)
        if name in METRICS:
            assert httpx.get(f"http://{place}/metrics", trust_env=False).is_success
            unguarded.add(name)
        elif speaks_grpc(place):
            refused += assert_grpc_refuses(head, place)
        else:
            refused += assert_http_refuses(head, place)
    assert unguarded == METRICS
    assert {head.name(port) for _, port in head.listening} == {*head.ports, "worker"}, "each has been asked"
    assert {host for host, port in head.listening if head.name(port) == "dashboard-port"} == {"127.0.0.1"}
    assert_clients_are_refused(head)
    faults.report("token", ports=len(head.listening), calls_refused=refused, ports_open=len(unguarded))


def assert_grpc_refuses(head: Head, place: str) -> int:
    """How many methods did; each port has some, which a wrong token does not open, and the right one does."""
    with grpc.insecure_channel(place, options=[("grpc.enable_http_proxy", 0)]) as channel:
        said = {method: call_on(channel, method) for method in methods()}
        assert said.pop(HEALTH) in {"OK", "UNIMPLEMENTED"}
        assert set(said.values()) <= {"UNAUTHENTICATED", "UNIMPLEMENTED"}, (head.name(int(place.split(":")[1])), said)
        guarded = [method for method, status in said.items() if status == "UNAUTHENTICATED"]
        asking = next(method for method in guarded if re.search("/(Get|List|Health|Pull|ClusterInfo|Init)", method))
        assert call_on(channel, asking, "0" * 64) == "UNAUTHENTICATED"
        assert call_on(channel, asking, head.token) != "UNAUTHENTICATED"
    return len(guarded)


def assert_http_refuses(head: Head, place: str) -> int:
    known = [*routes(), ("get", "/get_or_create_runtime_env"), ("post", "/get_or_create_runtime_env")]
    statuses = {}
    with httpx.Client(base_url=f"http://{place}", trust_env=False, timeout=SECONDS) as client:
        for verb, path in known:
            if path not in OPEN_PATHS:
                statuses[verb, path] = client.request(verb, path).status_code
        wrong = client.get("/api/version", headers={"authorization": f"Bearer {'0' * 64}"}).status_code
        right = client.get("/api/version", headers={"authorization": f"Bearer {head.token}"}).status_code
    answered = {what: status for what, status in statuses.items() if status not in {401, 403, 404, 405}}
    assert not answered, (head.name(int(place.split(":")[1])), answered)
    assert (wrong, right) in {(403, 200), (403, 404)}, "404: this one has no such route, but would say so"
    refused = sum(status in {401, 403} for status in statuses.values())
    assert refused > len(statuses) * 0.9, statuses
    return refused


def assert_clients_are_refused(head: Head) -> None:
    """Ray's own, by the way each comes in."""
    told = {name: value for name, value in os.environ.items() if name != "RAY_AUTH_TOKEN_PATH"}
    jobs = f"http://127.0.0.1:{head.ports['dashboard-port']}"
    code = f"import ray; ray.init('{head.address}'); print('in')"
    ray_command = str(Path(sys.executable).with_name("ray"))
    for environment in ({**told, "RAY_AUTH_MODE": "disabled"}, {**told, "RAY_AUTH_TOKEN": "0" * 64}):
        for command in ([sys.executable, "-c", code], [ray_command, "job", "list", "--address", jobs]):
            ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240, check=False)
            assert ended.returncode != 0, ended.stdout
            assert "in\n" not in ended.stdout
