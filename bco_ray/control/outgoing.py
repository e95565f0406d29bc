"""Where the server may connect to on a user's word, and the one way it does: public addresses only, no redirects.

A URL is looked at twice: `check_url` when it is handed in, and `Sender` each time, because a name may mean another
address by then. The sender resolves once and connects to what it has just checked; TLS still proves the name.
"""

from __future__ import annotations

import asyncio
import re
import socket
import ssl
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network

import httpx

from bco_ray.errors import BcoError, SpecError

CONNECT_SECONDS = 5.0
TOTAL_SECONDS = 15.0
"""From the name to the end of the answer."""
MOST_BODY_BYTES = 64 * 1024
"""What is read of an answer, and dropped: an endpoint that is hung up on while it writes may count that as an error."""
MOST_URL_CHARACTERS = 2048

Resolve = Callable[[str], Sequence[str]]
"""All addresses of a name. Raises OSError."""

_RESOLVERS = 8
_HOST = re.compile(r"[0-9a-z_.-]+|[0-9a-f:.]+")
_REACHABLE_6 = ip_network("2000::/3")
"""All that is handed out. The rest is loopback, private, link-local, multicast, or IPv4 in disguise (mapped, NAT64)."""
_NOT_PUBLIC = [
    ip_network(network)
    for network in (
        *("0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12"),
        *("192.0.0.0/24", "192.0.2.0/24", "192.88.99.0/24", "192.168.0.0/16", "198.18.0.0/15", "198.51.100.0/24"),
        *("203.0.113.0/24", "224.0.0.0/4", "240.0.0.0/4"),
        *("2001::/23", "2001:db8::/32", "2002::/16", "3fff::/20"),  # Teredo, examples, 6to4
    )
]
"""IANA's special-purpose registries; `is_global` alone differs between versions of Python."""


class ForbiddenUrlError(SpecError):
    """A URL that the server does not connect to. Says the host at most: the rest of a URL may be a secret."""


class UnreachableError(BcoError):
    """Nobody answered in time."""


def check_url(url: str, *, allow_private: bool, resolve: Resolve | None = None) -> str:
    """The URL as it will be called. Resolves its host, so call it in a thread.

    `allow_private`: http and addresses that are not public are fine. Raises ForbiddenUrlError.
    """
    parsed = _parsed(url, allow_private=allow_private)
    _addresses(parsed, allow_private=allow_private, resolve=resolve or resolved)
    return str(parsed)


def resolved(host: str) -> list[str]:
    """All IPv4 and IPv6 addresses, the most promising first (RFC 6724)."""
    found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(address[0]) for *_, address in found))


def is_public(address: str) -> bool:
    """Whether anybody on the Internet could connect to it as well as we."""
    try:
        ip = ip_address(address)
    except ValueError:
        return False
    return ip.is_global and _is_handed_out(ip) and not any(ip in network for network in _NOT_PUBLIC)


class Sender:
    """POSTs to URLs of users. Each time a connection of its own: on a shared one, TLS has proved another's name.

    Proxies of the environment are not used, its certificates ($SSL_CERT_FILE) are.
    """

    def __init__(
        self, *, allow_private: bool, resolve: Resolve | None = None, certificates: ssl.SSLContext | None = None
    ) -> None:
        self._allow_private = allow_private
        self._resolve = resolve or resolved
        self._certificates = certificates or httpx.create_ssl_context()
        self._resolvers = ThreadPoolExecutor(_RESOLVERS, thread_name_prefix="resolver")

    async def __call__(self, url: str, body: str, headers: Mapping[str, str]) -> int:
        """The status of the answer. Raises ForbiddenUrlError, or UnreachableError if there is none."""
        parsed = _parsed(url, allow_private=self._allow_private)
        ends = asyncio.get_running_loop().time() + TOTAL_SECONDS
        try:
            async with self._client() as client:
                async with asyncio.timeout_at(ends):
                    response = await self._post(client, parsed, body, headers)
                await _drop(response, ends)
                return response.status_code
        except (httpx.HTTPError, httpx.InvalidURL, OSError) as error:  # OSError: a timeout, or TLS ended by an alert
            raise UnreachableError(f"{_host(parsed)}: {_told(error)}.") from error

    def _client(self) -> httpx.AsyncClient:
        timeout = httpx.Timeout(TOTAL_SECONDS, connect=CONNECT_SECONDS)
        return httpx.AsyncClient(
            verify=self._certificates, timeout=timeout, trust_env=False, follow_redirects=False, headers=_HEADERS
        )

    async def _post(
        self, client: httpx.AsyncClient, url: httpx.URL, body: str, headers: Mapping[str, str]
    ) -> httpx.Response:
        """Tries the next address only where there was no connection: nothing is sent twice."""
        failure: httpx.TransportError = httpx.ConnectError("no address")
        for address in await self._checked(url):
            try:
                return await client.send(_pinned(client, url, address, body, headers), stream=True)
            except (httpx.ConnectError, httpx.ConnectTimeout) as error:
                failure = error
        raise failure

    async def _checked(self, url: httpx.URL) -> Sequence[str]:
        """In threads of its own: a name server that is slow to answer holds up nobody else's."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(
            self._resolvers, lambda: _addresses(url, allow_private=self._allow_private, resolve=self._resolve)
        )


_HEADERS = {"User-Agent": "bco-ray", "Accept": "*/*", "Accept-Encoding": "identity", "Connection": "close"}


def _parsed(url: str, *, allow_private: bool) -> httpx.URL:
    """Everything but the addresses. By the parser that connects, so that no two can understand it differently."""
    if len(url) > MOST_URL_CHARACTERS or not url.isprintable() or " " in url or "\\" in url:
        raise ForbiddenUrlError(
            f"url: at most {MOST_URL_CHARACTERS} characters, no blanks, backslashes or control characters; "
            "percent-encode them."
        )
    try:
        parsed = httpx.URL(url)
    except httpx.InvalidURL:
        raise ForbiddenUrlError("url: this is no URL; it looks like https://HOST/PATH.") from None
    _check_parts(parsed, {"https", "http"} if allow_private else {"https"})
    return parsed


def _check_parts(url: httpx.URL, schemes: set[str]) -> None:
    if url.scheme not in schemes:
        raise ForbiddenUrlError(f"url: must start with {' or '.join(f'{s}://' for s in sorted(schemes))}.")
    if url.userinfo:
        raise ForbiddenUrlError("url: may hold no user or password; deliveries are signed instead.")
    if not _HOST.fullmatch(_host(url)):
        raise ForbiddenUrlError("url: has no host that can be called; it looks like https://HOST/PATH.")
    if url.port is not None and not 1 <= url.port <= 65535:
        raise ForbiddenUrlError("url: the port must be from 1 to 65535.")


def _addresses(url: httpx.URL, *, allow_private: bool, resolve: Resolve) -> Sequence[str]:
    """All of them are fine, or none is. The answer does not say which it was: that would map our network."""
    host = _host(url)
    try:
        found = resolve(host)
    except (OSError, UnicodeError):
        found = []
    if not found or not (allow_private or all(is_public(address) for address in found)):
        raise ForbiddenUrlError(f"{host}: no host with a public address; check its spelling and its DNS records.")
    return found


def _pinned(
    client: httpx.AsyncClient, url: httpx.URL, address: str, body: str, headers: Mapping[str, str]
) -> httpx.Request:
    """A request to this address that still asks for, and has TLS prove, the host's name."""
    return client.build_request(
        "POST",
        url.copy_with(host=address),
        content=body.encode(),
        headers={**headers, "Host": url.netloc.decode("ascii")},
        extensions={"sni_hostname": _host(url).rstrip(".")},
    )


async def _drop(response: httpx.Response, ends: float) -> None:
    """Read and forget; its status stands, whatever becomes of the rest. `ends`: by the loop's clock."""
    left = MOST_BODY_BYTES
    with suppress(httpx.HTTPError, OSError):
        async with asyncio.timeout_at(ends):
            async for part in response.aiter_raw():
                left -= len(part)
                if left <= 0:
                    return


def _is_handed_out(ip: IPv4Address | IPv6Address) -> bool:
    return isinstance(ip, IPv4Address) or ip in _REACHABLE_6


def _host(url: httpx.URL) -> str:
    return url.raw_host.decode("ascii")


def _told(error: Exception) -> str:
    """For the webhook's owner. What a stranger's server wrote is not repeated."""
    if isinstance(error, httpx.ConnectError):
        return f"no connection ({error})"
    if isinstance(error, httpx.ConnectTimeout):
        return f"no connection within {CONNECT_SECONDS:g} s"
    if isinstance(error, httpx.TimeoutException | TimeoutError):
        return f"no answer within {TOTAL_SECONDS:g} s"
    return f"no proper HTTP answer ({type(error).__name__})"
