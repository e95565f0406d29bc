"""Where the server lets itself be sent: not into its own network, whatever a URL or a name server says."""

from __future__ import annotations

import asyncio
import datetime
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from bco_ray.control import outgoing
from bco_ray.control.outgoing import ForbiddenUrlError, Sender, UnreachableError, check_url, is_public

PUBLIC = "93.184.216.34"

NOT_URLS = [
    "",
    "https://",
    "https:///path",
    "https:hooks.example",
    "//hooks.example/",
    "hooks.example",
    "http://hooks.example/",
    "ftp://hooks.example/",
    "file:///etc/passwd",
    "gopher://hooks.example/",
    "javascript:alert(1)",
    "https://user:hunter2@hooks.example/",
    "https://user@hooks.example/",
    "https://hooks.example:0/",
    "https://hooks.example:-1/",
    "https://hooks.example:65536/",
    "https://hooks.example:99999999999999999999/",
    "https://hooks.example:443x/",
    "https://hooks.example/\r\nX-Injected: 1",
    "https://hooks.example/\x00",
    "https://hooks.example/\x7f",
    "https://hooks.example/\x85",
    "https://hooks.example/\u2028",
    "https://hooks.example/\ud800",
    "https://hooks.example\t/",
    " https://hooks.example/",
    "https://hooks.example/ ",
    "https://hooks.example\\@127.0.0.1/",
    "https://127.0.0.1%2f@hooks.example/",
    "https://hooks.example%00.evil.example/",
    "https://[::1/",
    "https://[fe80::1%25eth0]/",
    "https://\uff11\uff12\uff17.0.0.1/",
    "https://0177.0.0.1/",
    "https://256.256.256.256/",
    "https://hooks.example/" + "a" * 3000,
]

NOT_PUBLIC = [
    "0.0.0.0", "0.1.2.3", "10.0.0.1", "100.64.0.1", "127.0.0.1", "127.255.255.254", "169.254.169.254", "172.16.0.1",
    "172.31.255.255", "192.0.0.8", "192.0.2.1", "192.88.99.1", "192.168.1.1", "198.18.0.1", "198.51.100.1",
    "203.0.113.1", "224.0.0.1", "239.255.255.255", "240.0.0.1", "255.255.255.255",
    "::", "::1", "::127.0.0.1", "::ffff:127.0.0.1", "::ffff:169.254.169.254", "::ffff:8.8.8.8", "64:ff9b::7f00:1",
    "64:ff9b::808:808", "64:ff9b:1::1", "100::1", "2001::1", "2001:db8::1", "2002:7f00:1::", "3fff::1", "5f00::1",
    "fc00::1", "fd00:ec2::254", "fe80::1", "fe80::1%eth0", "fec0::1", "ff02::1", "not an address",
]  # fmt: skip

SPELLINGS_OF_LOOPBACK = [
    "https://127.1/", "https://0x7f000001/", "https://2130706433/", "https://017700000001/", "https://0x7f.1/",
    "https://127.0.0.1:8443/", "https://[::1]/", "https://[::ffff:127.0.0.1]/", "https://[::ffff:7f00:1]/",
    "https://[0:0:0:0:0:0:0:1]/", "https://0/", "https://0.0.0.0/", "https://[::]/", "https://127。0。0。1/",
    "https://LOCALHOST/", "https://localhost./",
]  # fmt: skip


def names(**addresses: list[str]) -> Callable[[str], list[str]]:
    """A name server; dots in names are written as _."""
    known = {name.replace("_", "."): found for name, found in addresses.items()}

    def resolve(host: str) -> list[str]:
        if host not in known:
            raise OSError("no such name")
        return known[host]

    return resolve


@pytest.mark.parametrize("url", NOT_URLS)
def test_what_is_no_url_to_call_is_refused(url: str) -> None:
    with pytest.raises(ForbiddenUrlError) as raised:
        check_url(url, allow_private=False, resolve=lambda _: [PUBLIC])
    assert "hunter2" not in str(raised.value)


@pytest.mark.parametrize("address", NOT_PUBLIC)
def test_what_is_not_on_the_internet_is_refused(address: str) -> None:
    assert not is_public(address)
    with pytest.raises(ForbiddenUrlError, match="internal.example: no host with a public address") as raised:
        check_url("https://internal.example/", allow_private=False, resolve=names(internal_example=[address]))
    assert address not in str(raised.value)


@pytest.mark.parametrize("url", SPELLINGS_OF_LOOPBACK)
def test_however_it_is_spelled(url: str) -> None:
    with pytest.raises(ForbiddenUrlError):
        check_url(url, allow_private=False)


@pytest.mark.parametrize("address", [PUBLIC, "8.8.8.8", "2606:2800:21f:cb07:6820:80da:af6b:8b2c", "2a00:1450:4001::1"])
def test_what_is_on_it_is_not(address: str) -> None:
    assert is_public(address)


def test_one_bad_address_among_good_ones_is_enough() -> None:
    resolve = names(mixed_example=[PUBLIC, "2606:2800:21f:cb07:6820:80da:af6b:8b2c", "10.0.0.1"])
    with pytest.raises(ForbiddenUrlError):
        check_url("https://mixed.example/", allow_private=False, resolve=resolve)


def test_a_name_that_means_nothing_is_refused() -> None:
    for resolve in (names(), names(hooks_example=[])):
        with pytest.raises(ForbiddenUrlError, match="hooks.example: no host with a public address"):
            check_url("https://hooks.example/", allow_private=False, resolve=resolve)


def test_the_url_comes_back_as_it_will_be_called() -> None:
    given = "https://Bücher.example:443/ä?token=1"
    url = check_url(
        given, allow_private=False, resolve=lambda host: [PUBLIC] if host == "xn--bcher-kva.example" else []
    )
    assert url == "https://xn--bcher-kva.example/%C3%A4?token=1"


def test_in_a_private_network_everything_may_be_called() -> None:
    assert check_url("http://127.0.0.1:8000/hook", allow_private=True) == "http://127.0.0.1:8000/hook"
    with pytest.raises(ForbiddenUrlError, match="must start with http:// or https://"):
        check_url("ftp://127.0.0.1/", allow_private=True)


# --- sending


class Handler(BaseHTTPRequestHandler):
    """Keeps what it was asked; `answer` says how."""

    asked: list[dict[str, Any]]
    answer: Callable[[Handler], None]

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"])).decode()
        self.asked.append(
            {"host": self.headers["host"], "path": self.path, "body": body, "headers": dict(self.headers)}
        )
        type(self).answer(self)

    def log_message(self, *_: object) -> None: ...


def status(code: int, **headers: str) -> Callable[[Handler], None]:
    def answer(handler: Handler) -> None:
        handler.send_response(code)
        for name, value in headers.items():
            handler.send_header(name, value)
        handler.end_headers()

    return answer


@contextmanager
def serving(answer: Callable[[Handler], None], tls: ssl.SSLContext | None = None) -> Iterator[tuple[int, list[Any]]]:
    """Its port and what it was asked."""
    asked = list[Any]()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("_", (Handler,), {"asked": asked, "answer": answer}))
    server.daemon_threads = True
    server.handle_error = lambda *_: None  # type: ignore[method-assign]
    if tls:
        server.socket = tls.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield server.server_address[1], asked
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def post(sender: Sender, url: str) -> int:
    return asyncio.run(sender(url, "{}", {"webhook-id": "1"}))


@pytest.fixture
def local() -> Sender:
    return Sender(allow_private=True, resolve=names(hooks_example=["127.0.0.1"]))


def test_it_connects_to_the_address_it_checked_and_asks_for_the_name(local: Sender) -> None:
    with serving(status(204)) as (port, asked):
        assert post(local, f"http://hooks.example:{port}/a?b=1") == 204
    (request,) = asked
    assert (request["host"], request["path"], request["body"]) == (f"hooks.example:{port}", "/a?b=1", "{}")
    assert request["headers"]["webhook-id"] == "1"


def test_a_name_that_turns_private_after_it_was_checked_is_not_called() -> None:
    answers = iter([[PUBLIC], ["127.0.0.1"], [PUBLIC]])
    asked = list[str]()

    def rebinding(host: str) -> list[str]:
        asked.append(host)
        return next(answers)

    with serving(status(200)) as (port, requests):
        url = check_url(f"https://rebind.example:{port}/", allow_private=False, resolve=rebinding)
        with pytest.raises(ForbiddenUrlError):
            post(Sender(allow_private=False, resolve=rebinding), url)
    assert (len(asked), requests) == (2, [])  # once per check: what was checked is what would have been called


def test_the_next_address_is_tried_where_nobody_listens() -> None:
    with serving(status(200)) as (port, asked):
        sender = Sender(allow_private=True, resolve=names(hooks_example=["127.0.0.2", "127.0.0.1"]))
        assert post(sender, f"http://hooks.example:{port}/") == 200
        assert len(asked) == 1


def test_redirects_and_proxies_are_not_followed(local: Sender, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    monkeypatch.setenv("ALL_PROXY", "http://127.0.0.1:1")
    with (
        serving(status(200)) as (inside, asked),
        serving(status(307, location=f"http://127.0.0.1:{inside}/")) as (port, _),
    ):
        assert post(local, f"http://hooks.example:{port}/") == 307
    assert asked == []


def test_of_an_endless_answer_a_little_is_read(local: Sender) -> None:
    written = [0]

    def endless(handler: Handler) -> None:
        status(200)(handler)
        for _ in range(10_000):
            written[0] += handler.wfile.write(b"x" * 65536)

    with serving(endless) as (port, _):
        assert post(local, f"http://hooks.example:{port}/") == 200
    assert written[0] < 10_000 * 65536


def test_who_says_nothing_is_given_up(local: Sender, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outgoing, "TOTAL_SECONDS", 0.3)
    done = threading.Event()

    def silent(_: Handler) -> None:
        done.wait(10)

    def never_ending(handler: Handler) -> None:
        status(200, **{"content-length": "5"})(handler)
        done.wait(10)

    with serving(silent) as (port, _):
        with pytest.raises(UnreachableError, match="hooks.example: no answer within 0.3 s"):
            post(local, f"http://hooks.example:{port}/?token=private")
        done.set()
    done.clear()
    with serving(never_ending) as (port, _):
        assert post(local, f"http://hooks.example:{port}/") == 200  # it has said what counts
        done.set()


def test_a_name_server_that_says_nothing_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outgoing, "TOTAL_SECONDS", 0.2)
    done = threading.Event()
    sender = Sender(allow_private=True, resolve=lambda _: ["127.0.0.1"] if done.wait(10) else [])
    with pytest.raises(UnreachableError, match="no answer within"):
        post(sender, "http://slow.example/")
    done.set()


def test_what_is_no_http_is_not_repeated(local: Sender) -> None:
    with (
        serving(lambda handler: handler.wfile.write(b"SSH-2.0-secretive\r\n\r\n") and None) as (port, _),
        pytest.raises(UnreachableError, match="no proper HTTP answer") as raised,
    ):
        post(local, f"http://hooks.example:{port}/")
    assert "secretive" not in str(raised.value)


def test_nobody_there(local: Sender) -> None:
    with pytest.raises(UnreachableError, match="hooks.example: no connection"):
        post(local, "http://hooks.example:1/")


def test_tls_proves_the_name_and_not_the_address(tmp_path: Path) -> None:
    server, client = certificates(tmp_path, "hooks.example")
    resolve = names(hooks_example=["127.0.0.1"], other_example=["127.0.0.1"])
    sender = Sender(allow_private=True, resolve=resolve, certificates=client)
    with serving(status(200), server) as (port, _):
        assert post(sender, f"https://hooks.example:{port}/") == 200
        with pytest.raises(UnreachableError, match="certificate"):
            post(sender, f"https://other.example:{port}/")
        stranger = Sender(allow_private=True, resolve=resolve)
        with pytest.raises(UnreachableError, match="certificate"):
            post(stranger, f"https://hooks.example:{port}/")


def certificates(directory: Path, name: str) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """A server's that is `name`, and a client's that believes it."""
    key, now = ec.generate_private_key(ec.SECP256R1()), datetime.datetime.now(datetime.UTC)
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    built = x509.CertificateBuilder(subject, subject, key.public_key(), x509.random_serial_number())
    built = built.not_valid_before(now - datetime.timedelta(hours=1)).not_valid_after(now + datetime.timedelta(hours=1))
    built = built.add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
    encoding, plain = serialization.Encoding.PEM, serialization.NoEncryption()
    certificate = built.sign(key, hashes.SHA256()).public_bytes(encoding)
    (directory / "pem").write_bytes(key.private_bytes(encoding, serialization.PrivateFormat.PKCS8, plain) + certificate)
    server, client = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    server.load_cert_chain(directory / "pem")
    client.load_verify_locations(cadata=certificate.decode())
    return server, client
