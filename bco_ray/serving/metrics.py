"""What `/metrics` shows of one gateway process. Labels have few values and never name a user."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from http import HTTPStatus

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info, generate_latest

from bco_ray.serving.engines.protocol import Load
from bco_ray.serving.http.generation import Timing
from bco_ray.storage.feedback_rows import Choice, VoteEvent

_PROBES = frozenset({"/healthz", "/readyz", "/metrics"})
_REQUEST_SECONDS = (0.005, 0.02, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
_TOKEN_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.2, 0.5, 1, 5)


class Metrics:
    """Requests, answers, tokens and votes since the process started, and how busy the engines are now."""

    def __init__(self) -> None:
        self._registry = registry = CollectorRegistry()
        Info("bco_gateway", "The process that counted.", registry=registry).info(
            {"host": socket.gethostname(), "pid": str(os.getpid())}
        )
        self._requests = Histogram(
            "bco_request_seconds", "HTTP requests, to the last byte.", ["route", "status"],
            buckets=_REQUEST_SECONDS, registry=registry,
        )  # fmt: skip
        self._turned_away = Counter(
            "bco_turned_away", "HTTP requests answered 429: a full queue, or a limit of the key or project.", ["route"],
            registry=registry,
        )  # fmt: skip
        self._ready = Gauge("bco_ready", "1 if the models answer.", registry=registry)
        self._answers = Counter("bco_answers", "Answers given.", ["model", "finish_reason"], registry=registry)
        self._tokens = Counter(
            "bco_tokens", "Tokens: prompt (cached among them), cached, completion.", ["model", "kind"],
            registry=registry,
        )  # fmt: skip
        self._first = Histogram(
            "bco_first_token_seconds", "From the rendered prompt to the first token.", ["model"],
            buckets=_REQUEST_SECONDS, registry=registry,
        )  # fmt: skip
        self._between = Histogram(
            "bco_inter_token_seconds", "Mean time between the tokens of an answer.", ["model"],
            buckets=_TOKEN_SECONDS, registry=registry,
        )  # fmt: skip
        self._votes = Counter("bco_votes", "Votes stored.", ["model", "label"], registry=registry)
        self._switches = Counter("bco_switches", "A name came to mean another version.", ["name"], registry=registry)
        self._serves = Gauge("bco_serves", "1 for the version that a name means.", ["name", "model"], registry=registry)
        self._refused = Gauge("bco_refused_versions", "Versions that should be served and cannot.", registry=registry)
        self._names: dict[str, str] = {}
        self._load = {
            name: Gauge(f"bco_engine_{name}", help_text, registry=registry)
            for name, help_text in (
                ("running", "Requests in the engines' batches."),
                ("waiting", "Requests that wait for a place in one."),
                ("kv_tokens", "Tokens in the KV caches."),
                ("kv_capacity", "Tokens that fit into the KV caches."),
            )
        }

    def served(self, route: str, status: int, seconds: float) -> None:
        """Count one HTTP request, by its route's pattern and its class of status; probes are nobody's requests."""
        if route in _PROBES:
            return
        self._requests.labels(route, f"{status // 100}xx").observe(seconds)
        if status == HTTPStatus.TOO_MANY_REQUESTS:
            self._turned_away.labels(route).inc()

    def answered(self, model: str, prompt_tokens: int, cached: int, choices: list[Choice], timing: Timing) -> None:
        """Count one reply, or as much of it as there was."""
        self._tokens.labels(model, "prompt").inc(prompt_tokens)
        self._tokens.labels(model, "cached").inc(cached)
        for choice in choices:
            self._answers.labels(model, choice.finish_reason).inc()
            self._tokens.labels(model, "completion").inc(len(choice.token_ids))
        longest = max(len(choice.token_ids) for choice in choices)
        if timing.first:
            self._first.labels(model).observe(timing.first - timing.began)
        if longest > 1:
            self._between.labels(model).observe((timing.latest - timing.first) / (longest - 1))

    def voted(self, event: VoteEvent) -> None:
        """Count one new vote."""
        label = {True: "up", False: "down", None: "withdrawn"}[event.vote.label]
        self._votes.labels(event.model, label).inc()

    def switched(self, names: Mapping[str, str], refused: int) -> None:
        """Note what every name means from now on; the first time nothing was switched."""
        for name in self._names.keys() | names.keys():
            before, now = self._names.get(name), names.get(name)
            if before and before != now:
                self._serves.remove(name, before)
            if before and now and before != now:
                self._switches.labels(name).inc()
            if now:
                self._serves.labels(name, now).set(1)
        self._refused.set(refused)
        self._names = dict(names)

    def render(self, load: Load | None, *, ready: bool) -> bytes:
        """Prometheus' text format. `load` None: the engines do not say, and NaN stands for that."""
        self._ready.set(ready)
        for name, gauge in self._load.items():
            gauge.set(getattr(load, name) if load else float("nan"))
        return generate_latest(self._registry)
