"""Starting and stopping the server on a Ray that is already initialised."""

from __future__ import annotations

import ipaddress
import json
import socket
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import ray
from ray import serve
from ray.serve import Application, RunTarget
from ray.serve.schema import ApplicationStatus

from bco_ray.errors import ServingError
from bco_ray.serving.app import build
from bco_ray.serving.args import ServeArgs
from bco_ray.serving.fleet import PREFIX, reason
from bco_ray.serving.versions.routed import NOTHING

APPLICATION = "bco"

_POLL_SECONDS = 0.25


@dataclass(frozen=True)
class ServerHandle:
    """A running server. `url` has no trailing slash and no `/v1`."""

    url: str
    application: str = APPLICATION

    def refused(self) -> dict[str, str]:
        """Versions that should be served and cannot, with the reason; nothing while it cannot be asked."""
        answer = _get(f"{self.url}/readyz")
        return dict(answer.get("refused", {})) if isinstance(answer, dict) else {}

    def stop(self) -> None:
        """Take the server down. Ray Serve and its proxy stay, idle, until the cluster goes. Twice is fine."""
        if not ray.is_initialized():
            return
        _delete(lambda name: name == self.application)  # the gateways first: they end what they have begun
        _delete(lambda name: name.startswith(PREFIX))


def start_server(
    args: ServeArgs,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    timeout_seconds: float = 180,
    build: Callable[[Any], Application] = build,
    guarded: bool = False,
) -> ServerHandle:
    """Serve `args` at host:port and return once it answers. `guarded`: there are API keys, so any host will do.

    Raises ServingError if the host is not loopback, the port is taken, a server runs already, or it is not ready in
    time (what was started is taken down again); ModelError if the model cannot be served.
    """
    if not guarded:
        check_loopback(host)
    if not ray.is_initialized():
        raise ServingError("Ray is not initialised; call ray.init() first.")
    if APPLICATION in serve.status().applications:
        raise ServingError(f"This Ray cluster runs a server already (application {APPLICATION!r}); stop it first.")
    application = build(args)
    if not serve.status().proxies:  # else the port is, or ought to be, its own
        check_free(host, port)
    handle = ServerHandle(f"http://{f'[{host}]' if ':' in host else host}:{port}")
    try:
        serve.start(proxy_location="HeadOnly", http_options={"host": host, "port": port})
        target = RunTarget(application, name=APPLICATION, route_prefix="/")
        serve.run_many([target], wait_for_applications_running=False)  # serve.run would wait for ever for resources
        _wait_until_ready(handle.url, timeout_seconds)
    except BaseException:
        handle.stop()
        raise
    return handle


def _delete(which: Callable[[str], bool]) -> None:
    for name in filter(which, serve.status().applications):
        with suppress(TimeoutError):  # Serve's own: it has been told, and goes on draining
            serve.delete(name)


def check_loopback(host: str) -> None:
    """Raises ServingError for an address others could reach."""
    try:
        loopback = host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        loopback = False
    if not loopback:
        raise ServingError(
            f"{host}: not a loopback address, and there are no API keys: anybody who reaches the port could use the "
            "model and vote. Make one first (bco keys create), or serve on 127.0.0.1."
        )


def check_free(host: str, port: int) -> None:
    """Raises ServingError if nothing can listen there."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise ServingError(f"{host}:{port} cannot be listened on: {error.strerror}. Choose another port.") from None


def _wait_until_ready(url: str, timeout_seconds: float) -> None:
    """Poll /readyz until it names models: the proxy answers 404 while the route is unknown."""
    deadline = time.monotonic() + timeout_seconds
    answer: Any = "no answer"
    while time.monotonic() < deadline:
        application = serve.status().applications[APPLICATION]
        if application.status == ApplicationStatus.DEPLOY_FAILED:
            raise ServingError(f"The server did not start: {reason(application)}")
        answer = _get(f"{url}/readyz")
        if isinstance(answer, dict) and answer.get("models"):
            return
        if NOTHING in str(answer):
            raise ServingError(str(answer))
        time.sleep(_POLL_SECONDS)
    raise ServingError(
        f"{url}: not ready within {timeout_seconds:.0f} s. {reason(application) or answer}. "
        f"The cluster has free: {ray.available_resources()}."
    )


def _message(body: str) -> str:
    """What an error says; a proxy's is no JSON."""
    try:
        return str(json.loads(body)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return body


def _get(url: str) -> Any:
    try:
        with urllib.request.urlopen(url, timeout=10) as response:
            return json.loads(response.read())
    except urllib.error.HTTPError as error:
        with error:
            return _message(error.read().decode(errors="replace"))
    except (OSError, ValueError) as error:  # URLError, refused, 404 and 503, not JSON
        return str(error)
