"""From sampled tokens to text that may be shown: whole characters, nothing of a stop string, nothing taken back."""

from __future__ import annotations

from collections.abc import Callable, Sequence

_INCOMPLETE = "\ufffd"


class TextStream:
    """Decodes one answer as it grows. `decode` turns token ids into text, special tokens left out."""

    def __init__(self, decode: Callable[[list[int]], str], stop: Sequence[str] = ()) -> None:
        self._decode = decode
        self._stop = tuple(stop)
        self._ids: list[int] = []
        self._shown_from = 0  # decoding starts here: tokens before it cannot change the text any more
        self._shown_to = 0
        self._held = ""
        self.stopped = False

    def push(self, token: int) -> str:
        """Text that this token releases. Sets `stopped` when a stop string is complete."""
        self._ids.append(token)
        return self._release(self._decoded(final=False))

    def flush(self) -> str:
        """What was still held back; the answer has ended."""
        text = self._release(self._decoded(final=True)) + self._held
        self._held = ""
        return text

    def _decoded(self, *, final: bool) -> str:
        """New text, decoded together with a few tokens before it, because spaces depend on the neighbour."""
        before = self._decode(self._ids[self._shown_from : self._shown_to])
        text = self._decode(self._ids[self._shown_from :])
        if len(text) <= len(before) or (text.endswith(_INCOMPLETE) and not final):
            return ""
        self._shown_from, self._shown_to = self._shown_to, len(self._ids)
        return text[len(before) :]

    def _release(self, text: str) -> str:
        pending = self._held + text
        cuts = [at for stop in self._stop if (at := pending.find(stop)) >= 0]
        if cuts:
            self.stopped, self._held = True, ""
            return pending[: min(cuts)]
        keep = max((_overlap(pending, stop) for stop in self._stop), default=0)
        self._held = pending[len(pending) - keep :]
        return pending[: len(pending) - keep]


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that `stop` starts with."""
    return next((n for n in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:n])), 0)
