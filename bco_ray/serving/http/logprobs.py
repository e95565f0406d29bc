"""Log-probabilities as OpenAI's clients read them: for chat a list of tokens, for text completions parallel lists.

A token need not be whole characters. `bytes` is always exact; where they are no UTF-8 by themselves, the token's text
is escaped (`\\xf0\\x9f`), so that different tokens look different.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Sequence
from typing import Any

from bco_ray.serving.engines.protocol import TokenLogprob
from bco_ray.text import Tokenizer

Json = dict[str, Any]

LEAST_LOGPROB = -9999.0
"""JSON has no infinity."""

_BYTE_FALLBACK = re.compile(r"<0x([0-9A-F]{2})>")


def _byte_alphabet() -> dict[str, int]:
    """The characters that byte-level vocabularies write bytes with: printable ones as themselves, others above 255."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}


_BYTE = _byte_alphabet()


def token_bytes(tokenizer: Tokenizer, token_id: int) -> bytes:
    """What a token adds to the text."""
    piece = str(tokenizer.convert_ids_to_tokens(token_id))
    if "ByteLevel" in str(tokenizer.backend_tokenizer.decoder):
        return bytes(_BYTE[char] for char in piece) if all(char in _BYTE for char in piece) else piece.encode()
    if byte := _BYTE_FALLBACK.fullmatch(piece):
        return bytes([int(byte[1], 16)])
    return piece.replace("\u2581", " ").encode()


class LogprobWriter:
    """Writes the log-probabilities of one choice as they come. `wanted`: alternatives per token."""

    def __init__(self, tokenizer: Tokenizer, wanted: int, *, chat: bool) -> None:
        self._tokenizer = tokenizer
        self._wanted = wanted
        self._chat = chat
        self._text = codecs.getincrementaldecoder("utf-8")("ignore")
        self._offset = 0

    def write(self, tokens: Sequence[TokenLogprob]) -> Json:
        """The `logprobs` of a choice, or of a chunk of it."""
        return self._chat_shape(tokens) if self._chat else self._text_shape(tokens)

    def _chat_shape(self, tokens: Sequence[TokenLogprob]) -> Json:
        def entry(token_id: int, logprob: float) -> Json:
            raw = token_bytes(self._tokenizer, token_id)
            return {"token": _shown(raw, ""), "logprob": max(LEAST_LOGPROB, logprob), "bytes": list(raw)}

        content = [
            {**entry(token.token_id, token.logprob), "top_logprobs": [entry(*other) for other in self._top(token)]}
            for token in tokens
        ]
        return {"content": content, "refusal": None}

    def _text_shape(self, tokens: Sequence[TokenLogprob]) -> Json:
        return {
            "tokens": [self._name(token.token_id) for token in tokens],
            "token_logprobs": [max(LEAST_LOGPROB, token.logprob) for token in tokens],
            "top_logprobs": [self._alternatives(token) for token in tokens] if self._wanted else None,
            "text_offset": [self._advance(token.token_id) for token in tokens],
        }

    def _alternatives(self, token: TokenLogprob) -> dict[str, float]:
        """By text; the sampled token is among them in any case."""
        found = [*self._top(token), (token.token_id, token.logprob)]
        return {self._name(token_id): max(LEAST_LOGPROB, logprob) for token_id, logprob in found}

    def _top(self, token: TokenLogprob) -> Sequence[tuple[int, float]]:
        return token.top[: self._wanted]

    def _name(self, token_id: int) -> str:
        return _shown(token_bytes(self._tokenizer, token_id), "bytes:")

    def _advance(self, token_id: int) -> int:
        """Where in the answer's text the token begins, in characters."""
        begins = self._offset
        self._offset += len(self._text.decode(token_bytes(self._tokenizer, token_id)))
        return begins


def _shown(raw: bytes, mark: str) -> str:
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return mark + "".join(f"\\x{byte:02x}" for byte in raw)
