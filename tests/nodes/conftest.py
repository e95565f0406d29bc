"""A metadata server that says what it is told to."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest


class Metadata:
    """`pages` by path; a page that is a number is that error. Amazon's need the newest token that was given out."""

    def __init__(self) -> None:
        self.pages: dict[str, str | int] = {}
        self.asked: list[str] = []
        self.tokens = 0
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_PUT(self) -> None:
                outer.tokens += 1
                known = "/latest/api/token" in outer.pages and self.headers["X-aws-ec2-metadata-token-ttl-seconds"]
                self.answer(f"token-{outer.tokens}" if known else 405)

            def do_GET(self) -> None:
                outer.asked.append(self.path)
                token = self.headers["X-aws-ec2-metadata-token"]
                if self.path.startswith("/latest") and token != f"token-{outer.tokens}":
                    self.answer(401)
                elif self.path.startswith("/computeMetadata") and self.headers["Metadata-Flavor"] != "Google":
                    self.answer(403)
                else:
                    self.answer(outer.pages.get(self.path, 404))

            def answer(self, page: str | int) -> None:
                status, body = (page, b"") if isinstance(page, int) else (200, page.encode())
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: Any) -> None:
                return

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.host = f"127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def metadata(monkeypatch: pytest.MonkeyPatch) -> Iterator[Metadata]:
    """Where both clouds' clients look."""
    server = Metadata()
    monkeypatch.setenv("AWS_EC2_METADATA_SERVICE_ENDPOINT", f"http://{server.host}")
    monkeypatch.setenv("GCE_METADATA_HOST", server.host)
    yield server
    server.close()
