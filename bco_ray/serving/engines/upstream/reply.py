"""What an OpenAI-compatible server says on `/v1/completions`: the request, its stream as events, its errors as ours.

Token ids come from the server where it says them (`return_token_ids`, which vLLM knows). Where it does not, the text
is tokenized again with the served tokenizer once it is whole: the ids that training would see, not necessarily those
that were sampled, and without the ones of a stop string, which a server does not show.
"""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any

from bco_ray.errors import ServingError
from bco_ray.serving.engines.protocol import (
    DeadlineError,
    EngineDeadError,
    EngineOverloadedError,
    GenRequest,
    RequestRefusedError,
    TokenEvent,
    TokenLogprob,
)
from bco_ray.text import Tokenizer

Json = dict[str, Any]

_TOKEN_ID = "token_id:"
_FINISH_REASONS = {"stop", "length"}
_STATUS_OF_TYPE = {"rate_limit_error": 429, "invalid_request_error": 400, "BadRequestError": 400}
"""For errors inside a stream, whose code is no number."""


def completion_body(model: str, request: GenRequest) -> Json:
    """The JSON to post. Fields that only some servers know are ignored by the others."""
    body: Json = {
        "model": model,
        "prompt": request.token_ids,
        "max_tokens": request.max_new,
        "temperature": request.temperature,
        "top_p": request.top_p,
        "stream": True,
        "return_token_ids": True,
    }
    optional = {"top_k": request.top_k, "stop": list(request.stop)}
    body |= {name: value for name, value in optional.items() if value}
    if request.seed is not None:
        body["seed"] = request.seed
    if request.logprobs is not None:
        body |= {"logprobs": request.logprobs, "return_tokens_as_token_ids": True}
    return body


class Reply:
    """One answer, read chunk by chunk."""

    def __init__(self, request: GenRequest, tokenizer: Tokenizer) -> None:
        self._request = request
        self._tokenizer = tokenizer
        self._text = ""
        self._says_ids = False
        self._last: Json | None = None
        self._last_said = TokenEvent([], "")

    def read(self, chunk: Json) -> TokenEvent | None:
        """What a chunk adds. Raises the error it tells."""
        if "error" in chunk:
            raise streamed_error(chunk["error"])
        if not chunk.get("choices"):  # usage
            return None
        choice: Json = chunk["choices"][0]
        logprobs = [] if self._request.logprobs is None else _logprobs(choice.get("logprobs"))
        ids = choice.get("token_ids") or [each.token_id for each in logprobs]
        text = choice.get("text") or ""
        self._text += text
        self._says_ids = self._says_ids or bool(ids)
        event = TokenEvent(ids, text, logprobs=logprobs)
        if choice.get("finish_reason"):  # it leaves with `end`, which knows whether its last token is the end token
            self._last, self._last_said = choice, event
            return None
        return event if ids or text else None

    def end(self) -> TokenEvent:
        """The last event, once the stream is over. Raises EngineDeadError if the answer was not."""
        if self._last is None:
            raise EngineDeadError("the upstream's answer broke off")
        reason = self._last["finish_reason"]
        if reason not in _FINISH_REASONS:
            raise EngineDeadError(f"the upstream ended the answer with {reason!r}")
        ended = reason == "stop" and self._ended_itself(self._last)
        ids = [] if self._says_ids else self._tokenized(ended)
        return self._last_said + TokenEvent(ids, finish_reason=reason, ended=ended)

    def _ended_itself(self, choice: Json) -> bool:
        """An end token, not a stop string: vLLM and SGLang say which; else it was the former if none were given."""
        for field in ("stop_reason", "matched_stop"):
            if field in choice:
                return not isinstance(choice[field], str)
        return not self._request.stop

    def _tokenized(self, ended: bool) -> list[int]:
        ids: list[int] = self._tokenizer(self._text, add_special_tokens=False)["input_ids"]
        return [*ids, self._tokenizer.eos_token_id] if ended else list(ids)


async def server_sent(pieces: AsyncIterator[bytes]) -> AsyncGenerator[Json]:
    """The JSON of each event until `[DONE]`. Raises EngineDeadError if it is none.

    Lines end with a newline and nothing else: JSON may hold other characters that `str.splitlines` takes for an end.
    """
    held = b""
    async for piece in pieces:
        *lines, held = (held + piece).split(b"\n")
        for line in lines:
            data = line.removeprefix(b"data:").strip()
            if data == b"[DONE]":
                return
            if data and line.startswith(b"data:"):
                yield _parsed(data)


def refused(status: int, message: str) -> ServingError:
    """An HTTP status as our error. What only our operator can mend (key, model name) is not the client's fault."""
    match status:
        case 429:
            return EngineOverloadedError(f"the upstream is overloaded: {message}")
        case 408 | 504:
            return DeadlineError(f"the upstream took too long: {message}")
        case 400 | 413 | 422:
            return RequestRefusedError(message)
    return EngineDeadError(f"the upstream answered {status}: {message}")


def streamed_error(error: Any) -> ServingError:
    """An error that came as an event."""
    if not isinstance(error, dict):
        return EngineDeadError(f"the upstream failed: {error}")
    code = error.get("code")
    status = code if isinstance(code, int) else _STATUS_OF_TYPE.get(str(error.get("type")), 500)
    return refused(status, str(error.get("message")))


def message_of(body: bytes) -> str:
    """What an error reply says: the envelope's message, or the start of whatever it is."""
    try:
        return str(json.loads(body)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return body[:200].decode(errors="replace").strip() or "no reason given"


def _parsed(data: bytes) -> Json:
    try:
        return dict(json.loads(data))
    except (ValueError, TypeError) as error:
        raise EngineDeadError(f"the upstream sent what is no JSON object: {error}") from None


def _logprobs(said: Any) -> list[TokenLogprob]:
    """OpenAI's legacy form. Raises RequestRefusedError if tokens are texts, which do not tell their ids."""
    if not said:
        return []
    tables = said.get("top_logprobs") or [{} for _ in said["tokens"]]
    return [
        TokenLogprob(_token_id(token), logprob, _likeliest(table or {}))
        for token, logprob, table in zip(said["tokens"], said["token_logprobs"], tables, strict=True)
    ]


def _likeliest(table: dict[str, float]) -> list[tuple[int, float]]:
    ranked = sorted(table.items(), key=lambda item: -item[1])
    return [(_token_id(token), logprob) for token, logprob in ranked]


def _token_id(token: str) -> int:
    if not token.startswith(_TOKEN_ID):
        raise RequestRefusedError("logprobs: the upstream does not say token ids (vLLM does)")
    return int(token.removeprefix(_TOKEN_ID))
