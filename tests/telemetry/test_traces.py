"""Spans: of requests, of phases, and across processes; and nothing at all where nobody asked for them."""

from __future__ import annotations

import asyncio
import importlib.util
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from bco_ray.pipeline import driver
from bco_ray.storage.job_directory import JobDirectory
from bco_ray.telemetry import Phases, span, traceparent, traces
from bco_ray.web.edge import Edge

PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
TRACE = int("0af7651916cd43dd8448eb211c80319c", 16)


@pytest.fixture
def spans(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Kept in memory; what ended last comes last."""
    pytest.importorskip("opentelemetry.sdk.trace", reason="needs opentelemetry-sdk (pip install 'bco-ray[otel]')")
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    kept = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(kept))
    monkeypatch.setattr(traces, "_tracer", lambda: provider.get_tracer("test"))
    yield kept
    provider.shutdown()


@pytest.fixture
def untold(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Nobody has asked for a tracer yet."""
    for name in ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"):
        monkeypatch.delenv(name, raising=False)
    traces._tracer.cache_clear()
    yield
    traces._tracer.cache_clear()


def asked(path: str, **headers: str) -> httpx.Response:
    api = FastAPI()

    @api.get("/jobs/{job}")
    async def job(job: str) -> dict[str, str | None]:
        return {"carried": await asyncio.to_thread(traceparent)}

    async def ask() -> httpx.Response:
        transport = httpx.ASGITransport(Edge(api, served=lambda *_: None, send_request_id=True))
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            return await client.get(path, headers=headers)

    return asyncio.run(ask())


def test_a_request_goes_on_from_its_callers_trace(spans: Any) -> None:
    answer = asked("/jobs/7", traceparent=PARENT)
    (request,) = spans.get_finished_spans()
    assert request.name == "GET /jobs/{job}"
    assert request.context.trace_id == TRACE
    assert request.attributes["http.response.status_code"] == 200
    assert request.attributes["url.path"] == "/jobs/7"
    assert request.attributes["bco.request_id"] == answer.headers["x-request-id"]
    assert answer.json()["carried"].split("-")[1:3] == [f"{TRACE:032x}", f"{request.context.span_id:016x}"]


def test_an_unknown_route_names_no_path(spans: Any) -> None:
    asked("/nowhere/secret")
    assert spans.get_finished_spans()[0].name == "GET other"


def test_a_traceparent_that_is_none_begins_a_trace(spans: Any) -> None:
    with span("attempt", "nonsense"):
        pass
    assert spans.get_finished_spans()[0].parent is None


def test_phases_are_spans_inside_the_one_that_is_open(spans: Any) -> None:
    with span("attempt", PARENT, {"bco.attempt": 2}), Phases(quiet=True).phase("score"):
        pass
    phase, attempt = spans.get_finished_spans()
    assert (phase.name, attempt.name) == ("score", "attempt")
    assert phase.parent.span_id == attempt.context.span_id
    assert phase.context.trace_id == attempt.context.trace_id == TRACE


def test_an_error_is_the_spans_too(spans: Any) -> None:
    with pytest.raises(ValueError, match="no"), span("attempt"):
        raise ValueError("no")
    assert spans.get_finished_spans()[0].status.is_ok is False


def test_a_drivers_attempt_is_in_the_trace_of_its_jobs_request(spans: Any, tmp_path: Path) -> None:
    directory = JobDirectory(tmp_path, "ftjob-1")
    directory.path.mkdir(parents=True)
    directory.write("origin", {"project": "acme", "traceparent": PARENT})
    directory.spec.write_text("no_such_section: 1\n")
    assert driver.main(tmp_path, "ftjob-1", 1) != 0
    (attempt,) = spans.get_finished_spans()
    assert (attempt.name, attempt.context.trace_id) == ("job attempt", TRACE)
    assert dict(attempt.attributes) == {"bco.job": "ftjob-1", "bco.attempt": 1}


def test_who_did_not_ask_pays_nothing(untold: None) -> None:
    code = (
        "import sys; from bco_ray.telemetry import Phases, span, traceparent\n"
        "with span('x') as open_one, Phases(quiet=True).phase('y'): assert open_one is None and traceparent() is None\n"
        "print([name for name in sys.modules if name.startswith('opentelemetry')])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert out.stdout.strip() == "[]"


def test_the_package_is_asked_for_by_name(untold: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:4318")
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", None)
    warned: list[str] = []
    monkeypatch.setattr(traces.logger, "warning", lambda text, *values: warned.append(text % values))
    for _ in range(2):
        with span("request") as traced:
            assert traced is None
    assert len(warned) == 1
    assert "pip install 'bco-ray[otel]'" in warned[0]


def test_spans_reach_a_collector(untold: None, monkeypatch: pytest.MonkeyPatch) -> None:
    if importlib.util.find_spec("opentelemetry.exporter") is None or not _has_otlp():
        pytest.skip("needs opentelemetry-exporter-otlp-proto-http (pip install 'bco-ray[otel]')")
    from http.server import BaseHTTPRequestHandler, HTTPServer
    from threading import Thread

    came: list[tuple[str, bytes]] = []

    class Collector(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            came.append((self.path, self.rfile.read(int(self.headers["content-length"]))))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Collector) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
        with span("job attempt", PARENT):
            pass
        traces._tracer().span_processor.force_flush()
        server.shutdown()
    ((path, body),) = came
    assert path == "/v1/traces"
    assert b"job attempt" in body
    assert b"bco-ray" in body


def _has_otlp() -> bool:
    try:
        return importlib.util.find_spec("opentelemetry.exporter.otlp.proto.http") is not None
    except ModuleNotFoundError:
        return False
