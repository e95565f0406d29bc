"""From a conversation to token ids and the mask of the rated tokens. The only place that tokenizes for training.

The whole conversation is rendered once by the model's chat template; the boundary between prompt and completion is
taken from the template too (its `{% generation %}` marks, or the same template rendered up to the answer), never by
gluing strings together. The reference pass and the trainer read the ids this module made.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import transformers

from bco_ray.errors import ModelError, Refused
from bco_ray.schema import Message

Tokenizer = Any
"""A transformers PreTrainedTokenizerFast; its stubs are not typed."""

_TOKENIZER_FILES = {".json", ".jinja", ".model", ".txt"}
_NO_TOKENIZER = {"adapter_config.json", "generation_config.json", "lineage.json", "manifest.json"}


@dataclass(frozen=True)
class Encoded:
    """One row as tokens. Both lists have the same length T; mask[t] is True if ids[t] is a rated token."""

    input_ids: list[int]
    completion_mask: list[bool]


def load_tokenizer(directory: str | Path) -> Tokenizer:
    """The tokenizer of a model directory. Raises ModelError if there is none or it has no chat template."""
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(str(directory))
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(f"{directory}: cannot load a tokenizer: {_first_line(error)}") from None
    if not tokenizer.chat_template:
        raise ModelError(
            f"{directory}: the tokenizer has no chat template, so it is unknown how the model saw its prompts. "
            "Put the template the model was trained with into chat_template.jinja in that directory."
        )
    return tokenizer


def tokenizer_digest(directory: Path) -> str:
    """Equal for directories that `load_tokenizer` makes the same of: over every file but weights and notes."""
    names = sorted(p for p in directory.iterdir() if p.suffix in _TOKENIZER_FILES and p.name not in _NO_TOKENIZER)
    digest = hashlib.sha256()
    for path in names:
        content = path.read_bytes()
        digest.update(f"{path.name} {len(content)} ".encode() + content)
    return digest.hexdigest()


def template_inputs(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """Messages as the template takes them."""
    return [message.model_dump(exclude_none=True) for message in messages]


def encode(
    tokenizer: Tokenizer,
    prompt: Sequence[Message],
    completion: Sequence[Message],
    *,
    tools: list[dict[str, Any]] | None = None,
    ends: frozenset[int],
    finished: bool = True,
    max_length: int,
) -> Encoded:
    """Token ids of prompt + completion, up to and including the last rated token; nothing is cut.

    `ends`: ids that end a turn (`end_of_turn_ids`). `finished`: the model ended its answer itself, so its end token is
    rated too; False for an answer that was cut off. Raises Refused with the reason `template_error`,
    `template_boundary`, `empty_completion` or `too_long`.
    """
    try:
        ids, mask = _render(tokenizer, template_inputs(prompt), template_inputs(completion), tools)
    except (ValueError, TypeError, KeyError, transformers.utils.chat_template_utils.jinja2.TemplateError) as error:
        raise Refused("template_error", f"the chat template refuses these messages: {_first_line(error)}") from None
    mask = _until_end_of_turn(ids, mask, ends, keep_end=finished)
    length = max((t + 1 for t, rated in enumerate(mask) if rated), default=0)
    if length == 0:
        raise Refused("empty_completion", "the completion has no tokens")
    if length > max_length:
        raise Refused("too_long", f"{length} tokens, training.max_length is {max_length}")
    return Encoded(ids[:length], mask[:length])


def end_of_turn_ids(tokenizer: Tokenizer, directory: str | Path) -> frozenset[int]:
    """Ids that end a turn: the tokenizer's end-of-sequence token and those of the model's generation_config.json.

    Gemma ends a turn with `<end_of_turn>`, Phi with `<|end|>`: only the generation config says so.
    """
    path = Path(directory) / "generation_config.json"
    configured = json.loads(path.read_text()).get("eos_token_id") if path.is_file() else None
    ids = configured if isinstance(configured, list) else [configured]
    return frozenset(i for i in (*ids, tokenizer.eos_token_id) if i is not None)


def _render(
    tokenizer: Tokenizer, prompt: list[dict[str, Any]], completion: list[dict[str, Any]], tools: Any
) -> tuple[list[int], list[bool]]:
    if "{% generation" in tokenizer.chat_template or "{%- generation" in tokenizer.chat_template:
        return _render_marked(tokenizer, prompt, completion, tools)
    if len(completion) > 1:
        raise Refused(
            "template_boundary", "a completion of several messages needs a template with {% generation %} marks"
        )
    head = _ids(tokenizer, prompt, tools, add_generation_prompt=True)["input_ids"]
    ids = _ids(tokenizer, prompt + completion, tools)["input_ids"]
    if ids[: len(head)] != head:
        raise Refused("template_boundary", "the template renders the prompt differently once the answer is there")
    return ids, [t >= len(head) for t in range(len(ids))]


def _render_marked(
    tokenizer: Tokenizer, prompt: list[dict[str, Any]], completion: list[dict[str, Any]], tools: Any
) -> tuple[list[int], list[bool]]:
    """Only the marked tokens that come after every marked token of the prompt alone are rated."""
    earlier = sum(_ids(tokenizer, prompt, tools, return_assistant_tokens_mask=True)["assistant_masks"])
    encoded = _ids(tokenizer, prompt + completion, tools, return_assistant_tokens_mask=True)
    mask, seen = [], 0
    for marked in encoded["assistant_masks"]:
        seen += marked
        mask.append(bool(marked) and seen > earlier)
    return encoded["input_ids"], mask


def _ids(tokenizer: Tokenizer, messages: list[dict[str, Any]], tools: Any, **options: bool) -> Any:
    return tokenizer.apply_chat_template(messages, tools=tools, tokenize=True, return_dict=True, **options)


def _until_end_of_turn(ids: list[int], mask: list[bool], ends: frozenset[int], *, keep_end: bool) -> list[bool]:
    """Drop from the last rated message what follows its first end token (and that token if not `keep_end`).

    A newline or an end-of-text that the template adds there was never sampled by the model.
    """
    stop = max((t + 1 for t, rated in enumerate(mask) if rated), default=0)
    start = stop
    while start and mask[start - 1]:
        start -= 1
    first_end = next((t for t in range(start, stop) if ids[t] in ends), None)
    if first_end is None:
        return mask
    limit = first_end + 1 if keep_end else first_end
    return [rated and t < limit for t, rated in enumerate(mask)]


def content_text(message: Message) -> str:
    """The text of a message, parts joined; empty for none."""
    if isinstance(message.content, list):
        return "".join(str(part.get("text", "")) for part in message.content)
    return message.content or ""


def canonical_prompt(prompt: Sequence[Message]) -> str:
    """A prompt as one string that is equal exactly for equal conversations; what is hashed to split and to fold."""
    return json.dumps(template_inputs(prompt), sort_keys=True, ensure_ascii=False)


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
