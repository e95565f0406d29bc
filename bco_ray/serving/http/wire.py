"""The OpenAI wire format: the objects that replies are made of. No HTTP in here."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

from bco_ray.serving.args import Served
from bco_ray.storage.feedback_rows import Choice, Completion, VoteEvent
from bco_ray.storage.thumbs import VersionVotes

Json = dict[str, Any]


@dataclass(frozen=True)
class Head:
    """What every part of one reply repeats. `feedback_token` comes with the whole reply, or with its end."""

    id: str
    created: int
    served: Served
    chat: bool
    feedback_token: str

    def envelope(self, kind: str) -> Json:
        """The fields all objects of this reply have."""
        return {
            "id": self.id,
            "object": kind,
            "created": self.created,
            "model": self.served.model_id,
            "system_fingerprint": self.served.system_fingerprint,
        }


def usage(prompt_tokens: int, completion_tokens: int, cached_tokens: int = 0) -> Json:
    """Token counts; the prompt counts once however many answers it has."""
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
        "prompt_tokens_details": {"cached_tokens": cached_tokens},
    }


def reply(head: Head, choices: list[Choice], logprobs: list[Json | None], used: Json) -> Json:
    """The whole answer of a request without streaming."""
    kind = "chat.completion" if head.chat else "text_completion"
    parts = [_choice(head.chat, i, *both) for i, both in enumerate(zip(choices, logprobs, strict=True))]
    return {**head.envelope(kind), "choices": parts, "usage": used, "feedback_token": head.feedback_token}


def stored(completion: Completion, metadata: dict[str, str] | None) -> Json:
    """A logged answer as a reply, with the metadata it was just given."""
    chat = completion.endpoint == "chat"
    return {
        "id": completion.id,
        "object": "chat.completion" if chat else "text_completion",
        "created": int(completion.created_at),
        "model": completion.model,
        "system_fingerprint": completion.system_fingerprint,
        "choices": [_choice(chat, i, choice, None) for i, choice in enumerate(completion.choices)],
        "usage": usage(*completion.tokens),
        "metadata": metadata or {},
    }


def first_chunk(head: Head, index: int) -> Json:
    """What a chat stream opens each choice with; a text stream does not."""
    return _chunk(head, index, {"delta": {"role": "assistant", "content": ""}})


def text_chunk(head: Head, index: int, text: str, logprobs: Json | None) -> Json:
    """Some more of an answer."""
    return _chunk(head, index, {"delta": {"content": text}} if head.chat else {"text": text}, logprobs)


def final_chunk(head: Head, index: int, finish_reason: str) -> Json:
    """The end of one choice."""
    end = _chunk(head, index, {"delta": {}} if head.chat else {"text": ""}, None, finish_reason)
    return {**end, "feedback_token": head.feedback_token}


def usage_chunk(head: Head, used: Json) -> Json:
    """The last chunk of a stream with `include_usage`: counts and no choices."""
    return {**head.envelope(_chunk_kind(head)), "choices": [], "usage": used}


def model(served: Served, name: str) -> Json:
    """A served model under one of its names; `root` is the exact version."""
    return {
        "id": name,
        "object": "model",
        "created": served.created,
        "owned_by": "bco-ray",
        "root": served.model_id,
        "max_model_len": served.context_window,
    }


def feedback(event: VoteEvent) -> Json:
    """A stored vote. `effective` False: changed or withdrawn by a later one."""
    return {
        "id": event.id,
        "object": "feedback",
        "seq": event.seq,
        "created_at": int(event.created_at),
        "model": event.model,
        "effective": event.effective,
        **event.vote.model_dump(mode="json"),
    }


def vote_count(found: VersionVotes) -> Json:
    """Of the votes on a version's answers those that stand."""
    people = {"up": found.people.ups, "down": found.people.downs}
    counts = {"up": found.up, "down": found.down, "side_by_side": found.side_by_side, "people": people}
    return {"id": found.model, "object": "feedback.count", **counts}


def now() -> int:
    """Unix seconds."""
    return int(time.time())


def _choice(chat: bool, index: int, choice: Choice, logprobs: Json | None) -> Json:
    message = {"role": "assistant", "content": choice.text, "refusal": None}
    content: Json = {"message": message} if chat else {"text": choice.text}
    return {"index": index, **content, "logprobs": logprobs, "finish_reason": choice.finish_reason}


def _chunk_kind(head: Head) -> str:
    return "chat.completion.chunk" if head.chat else "text_completion"


def _chunk(
    head: Head, index: int, content: Json, logprobs: Json | None = None, finish_reason: str | None = None
) -> Json:
    choice = {"index": index, **content, "logprobs": logprobs, "finish_reason": finish_reason}
    return {**head.envelope(_chunk_kind(head)), "choices": [choice]}
