"""Start-time fair queueing (Goyal, Vin, Cheng 1996) for an engine whose own queue knows priorities but no shares."""

from __future__ import annotations


class FairTags:
    """Gives each request a tag; whoever starts the lowest tag first serves the shares in turn.

    A share that sends many requests queues behind itself: its tags count up, those of others begin at the tag that
    started last. Nobody starves: what starts moves every newcomer's tag up.
    """

    def __init__(self) -> None:
        self._now = 0
        self._next: dict[str, int] = {}

    def tag(self, share: str) -> int:
        """Of the next request of this share."""
        tag = max(self._now, self._next.get(share, 0))
        self._next[share] = tag + 1
        return tag

    def started(self, tag: int) -> None:
        """The request with this tag runs now. Shares that have caught up are forgotten."""
        if tag > self._now:
            self._now = tag
            self._next = {share: following for share, following in self._next.items() if following > tag}
