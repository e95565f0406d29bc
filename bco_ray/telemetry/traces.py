"""OpenTelemetry spans, where OTEL_EXPORTER_OTLP_ENDPOINT is set: else nothing is imported and nothing is done.

What the SDK reads from its OTEL_ variables (sampling, headers, names) holds. OTLP over HTTP: port 4318 of a collector.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from typing import Any

from bco_ray.telemetry.logs import logger

_ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")


@contextmanager
def span(name: str, parent: str | None = None, attributes: Mapping[str, str | int] | None = None) -> Iterator[Any]:
    """A span around the body, which gets OpenTelemetry's own object, or None without tracing.

    `parent`: a `traceparent` of another process; None: the span that is open here.
    """
    tracer = _tracer()
    if tracer is None:
        yield None
        return
    context = _carrier().extract({"traceparent": parent}) if parent else None
    with tracer.start_as_current_span(name, context=context, attributes=attributes) as current:
        yield current


def traceparent() -> str | None:
    """The open span in the words of W3C's Trace Context; None without one."""
    if _tracer() is None:
        return None
    carried: dict[str, str] = {}
    _carrier().inject(carried)
    return carried.get("traceparent")


@cache
def _tracer() -> Any:
    """None: nobody asked for traces, or the packages are missing, which is said once."""
    if not any(os.environ.get(name) for name in _ENDPOINTS):
        return None
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as error:
        logger.warning("no traces: %s; pip install 'bco-ray[otel]'", error)
        return None
    resource = Resource.create({} if os.environ.get("OTEL_SERVICE_NAME") else {"service.name": "bco-ray"})
    provider = TracerProvider(resource=resource)  # ours alone: Ray's spans, if any, are its own affair
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return provider.get_tracer("bco_ray")


@cache
def _carrier() -> Any:
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    return TraceContextTextMapPropagator()
