"""Counters that `/metrics` shows, of one gateway process. Labels have few values and never name a user."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, generate_latest

from bco_ray.storage.feedback_log import Choice, VoteEvent


class Metrics:
    """Answers, tokens and votes since the process started."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._answers = Counter("bco_answers", "Answers given.", ["finish_reason"], registry=self._registry)
        self._tokens = Counter("bco_tokens", "Tokens read and generated.", ["kind"], registry=self._registry)
        self._votes = Counter("bco_votes", "Votes stored.", ["label"], registry=self._registry)

    def answered(self, prompt_tokens: int, choices: list[Choice]) -> None:
        """Count one reply."""
        self._tokens.labels("prompt").inc(prompt_tokens)
        for choice in choices:
            self._answers.labels(choice.finish_reason).inc()
            self._tokens.labels("completion").inc(len(choice.token_ids))

    def voted(self, event: VoteEvent) -> None:
        """Count one new vote."""
        self._votes.labels({True: "up", False: "down", None: "withdrawn"}[event.vote.label]).inc()

    def render(self) -> bytes:
        """Prometheus' text format."""
        return generate_latest(self._registry)
