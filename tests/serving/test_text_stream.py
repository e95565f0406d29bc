"""Text leaves whole, in order, and never has to be taken back."""

from __future__ import annotations

import pytest

from bco_ray.serving.engines.text_stream import TextStream


def decode(ids: list[int]) -> str:
    return bytes(ids).decode("utf-8", errors="replace")


def run(text: str | bytes, *stop: str) -> tuple[list[str], TextStream]:
    """What each byte releases, and at last the flush, as if every byte were a token."""
    stream, released = TextStream(decode, stop), []
    for byte in text.encode() if isinstance(text, str) else text:
        released.append(stream.push(byte))
        if stream.stopped:
            return released, stream
    return [*released, stream.flush()], stream


@pytest.mark.parametrize("text", ["plain", "é☹𝄞 mixed", "", "ab\ufffdc"])
def test_everything_arrives(text: str) -> None:
    released, _ = run(text)
    assert "".join(released) == text


def test_half_a_character_is_held_back() -> None:
    assert run("☹!")[0] == ["", "", "☹", "!", ""]


def test_an_unfinished_character_comes_out_at_the_end() -> None:
    assert run(b"ab" + b"\xe2")[0] == ["a", "b", "", "\ufffd"]


def test_a_stop_string_and_what_follows_is_cut() -> None:
    released, stream = run("one END two", "END", "never")
    assert ("".join(released), stream.stopped) == ("one ", True)


def test_what_might_become_a_stop_string_is_held_back() -> None:
    assert run("aENx", "END")[0] == ["a", "", "", "ENx", ""]
    assert run("aEN", "END")[0] == ["a", "", "", "EN"], "the end releases it"


def test_the_earliest_stop_string_wins() -> None:
    released, _ = run("abcd", "cd", "bc")
    assert "".join(released) == "a"
