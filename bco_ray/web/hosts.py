"""Whether a request came from this machine and was meant for it: what keeps others out while there are no API keys.

A page whose own name is made to resolve to 127.0.0.1 (DNS rebinding) reaches the port, and to its browser both are one
origin. What it cannot choose is the `Host` that the browser sends: its own name.
"""

from __future__ import annotations

import ipaddress
import re

from starlette.datastructures import Headers
from starlette.types import Scope

from bco_ray.web.errors import ApiError

_HOST = re.compile(r"(?:\[(?P<v6>[0-9A-Fa-f:.]+)\]|(?P<name>[^:\[\]]+))(?::\d*)?")


def check_local(scope: Scope) -> None:
    """Raises ApiError 403 if the caller's address, or a `Host`, is none of loopback. No `Host` at all is HTTP/1.0: no
    browser.

    `bco serve` does not listen elsewhere then (`serving.server.check_loopback`); a Serve config may.
    """
    address = (scope.get("client") or ("",))[0]
    if _is_elsewhere(address):
        message = (
            f"There are no API keys, so only this machine is answered, and {address} is another. "
            "Make a key where the server runs (bco keys create)."
        )
        raise ApiError(403, message, code="host_not_allowed")
    for host in Headers(scope=scope).getlist("host"):
        if not is_loopback(host):
            message = (
                f"There are no API keys, so only this machine is answered, and {host[:128]!a} is no name of it. "
                "Ask for http://127.0.0.1 or http://localhost, or make a key (bco keys create)."
            )
            raise ApiError(403, message, code="host_not_allowed")


def _is_elsewhere(address: str) -> bool:
    """A socket file has no address."""
    try:
        found = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return False
    return not (getattr(found, "ipv4_mapped", None) or found).is_loopback


def is_loopback(host: str) -> bool:
    """Of a `Host` header (`localhost:8000`, `[::1]`), whatever its port."""
    found = _HOST.fullmatch(host)
    if found is None:
        return False
    name = (found["v6"] or found["name"]).lower().removesuffix(".")
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False
