"""One request being answered: whole, or chunk by chunk, and handed in to the log before it can look complete."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Iterator
from contextlib import aclosing, contextmanager
from dataclasses import dataclass, replace

from bco_ray.serving.engines.protocol import TokenEvent
from bco_ray.serving.http import wire
from bco_ray.serving.http.bodies import ChatRequest, SamplingRequest
from bco_ray.serving.http.feedback_tokens import FeedbackTokens
from bco_ray.serving.http.generation import Caller, Generation, Indexed, Prompt, requests_of, shown_logprobs
from bco_ray.serving.http.ledger import Ledger
from bco_ray.serving.http.logprobs import LogprobWriter
from bco_ray.serving.metrics import Metrics
from bco_ray.serving.versions.catalog import Catalog, Target
from bco_ray.storage.feedback_log import Completion, new_completion_id

_LOGGED = {"temperature", "top_p", "top_k", "seed", "stop", "n"}


@dataclass(frozen=True)
class Backend:
    """What the routes work with."""

    catalog: Catalog
    ledger: Ledger
    metrics: Metrics
    tokens: FeedbackTokens
    timeout_seconds: float


class Answer:
    """Made when the prompt is rendered; exactly one of `whole` and `chunks` is used."""

    def __init__(self, backend: Backend, body: SamplingRequest, target: Target, prompt: Prompt, caller: Caller) -> None:
        chat = isinstance(body, ChatRequest)
        answer_id = new_completion_id("chatcmpl" if chat else "cmpl")
        self.head = wire.Head(answer_id, wire.now(), target.served, chat, backend.tokens.issue(answer_id))
        self._backend = backend
        self._body = body
        self._prompt = prompt
        self._canary_percent = target.canary_percent
        self._generation = Generation(target.engine, requests_of(target, body, prompt.ids, caller))
        self._handed_in = False
        wanted = body.wanted_logprobs
        self._logprobs = [
            None if wanted is None else LogprobWriter(target.tokenizer, wanted, chat=chat) for _ in range(body.n or 1)
        ]

    def events(self) -> AsyncGenerator[Indexed]:
        """What the engine says; the caller closes it."""
        return self._generation.events()

    async def whole(self) -> wire.Json:
        """The reply in one piece."""
        async with aclosing(self.events()) as events:
            async for _ in events:
                pass
        await self._hand_in()
        written = zip(self._logprobs, self._generation.logprobs, strict=True)
        logprobs = [writer.write(tokens) if writer else None for writer, tokens in written]
        return wire.reply(self.head, self._generation.choices, logprobs, self._usage)

    async def chunks(self, events: AsyncIterator[Indexed]) -> AsyncIterator[wire.Json]:
        """The reply as it comes. Before its last chunks leave, it is in the log."""
        head, opened = self.head, set[int]()
        async for index, event in events:
            if head.chat and index not in opened:
                opened.add(index)
                yield wire.first_chunk(head, index)
            logprobs = self._new_logprobs(index, event)
            if event.text or logprobs:
                yield wire.text_chunk(head, index, event.text, logprobs)
        await self._hand_in()
        for index, choice in enumerate(self._generation.choices):
            yield wire.final_chunk(head, index, choice.finish_reason)
        if self._body.wants_usage:
            yield wire.usage_chunk(head, self._usage)

    @contextmanager
    def visible(self) -> Iterator[None]:
        """While a client reads it: votes on it wait, and however it ends, what was seen can be voted on."""
        with self._backend.ledger.unfinished(self.head.id):
            try:
                yield
            finally:
                if not self._handed_in:
                    self._hand_in()

    def _new_logprobs(self, index: int, event: TokenEvent) -> wire.Json | None:
        writer, tokens = self._logprobs[index], shown_logprobs(event)
        return writer.write(tokens) if writer and tokens else None

    @property
    def _usage(self) -> wire.Json:
        generated = sum(len(choice.token_ids) for choice in self._generation.choices)
        return wire.usage(len(self._prompt.ids), generated, self._generation.cached)

    def _hand_in(self) -> Awaitable[object]:
        """From here on the answer is votable; on disk once the result is there, which nobody has to wait for."""
        self._handed_in = True
        generation = self._generation
        self._backend.metrics.answered(
            self.head.served.model_id,
            len(self._prompt.ids),
            generation.cached,
            generation.choices,
            generation.timing,
        )
        return self._backend.ledger.answered(self._completion())

    def _completion(self) -> Completion:
        body, head = self._body, self.head
        completion = Completion(
            id=head.id,
            created_at=head.created,
            model=head.served.model_id,
            system_fingerprint=head.served.system_fingerprint,
            messages=self._prompt.messages,
            tools=self._prompt.tools,
            prompt_ids=self._prompt.ids,
            choices=self._generation.choices,
            sampling={**body.model_dump(include=_LOGGED, exclude_none=True), "max_tokens": body.limit},
            user=body.user,
            endpoint="chat" if head.chat else "text",
            canary_percent=self._canary_percent,
        )
        return replace(completion.emptied("not_stored"), user=None) if body.store is False else completion
