"""Tokens and the mask of the rated ones, for templates with and without generation marks."""

import json
from pathlib import Path
from typing import Any

import pytest

from bco_ray.errors import ModelError, Refused
from bco_ray.schema import Message
from bco_ray.testing.tiny import write_tiny_model
from bco_ray.text import Encoded, Tokenizer, end_of_turn_ids, load_tokenizer
from bco_ray.text import encode as encode_with

USER = [Message(role="user", content="What is the capital of France?")]
ANSWER = [Message(role="assistant", content="Paris, of course.")]


@pytest.fixture(scope="module", params=[False, True], ids=["plain template", "generation marks"])
def tokenizer(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return load_tokenizer(write_tiny_model(tmp_path_factory.mktemp("m") / "m", generation_markers=request.param))


def encode(tokenizer: Tokenizer, *args: Any, **options: Any) -> Encoded:
    return encode_with(tokenizer, *args, **{"ends": frozenset([tokenizer.eos_token_id]), **options})


def rated(tokenizer: Tokenizer, encoded: Encoded) -> str:
    return str(tokenizer.decode([i for i, m in zip(encoded.input_ids, encoded.completion_mask, strict=True) if m]))


def test_the_answer_and_its_end_token_are_rated_and_nothing_else(tokenizer: Tokenizer) -> None:
    encoded = encode(tokenizer, USER, ANSWER, max_length=100)
    assert rated(tokenizer, encoded) == "Paris, of course.<|im_end|>"
    assert encoded.completion_mask[-1]  # what the template adds after the end of turn is gone
    whole = tokenizer.decode(encoded.input_ids)
    assert whole.startswith("<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n")


def test_an_answer_that_was_cut_off_does_not_teach_to_stop(tokenizer: Tokenizer) -> None:
    assert rated(tokenizer, encode(tokenizer, USER, ANSWER, finished=False, max_length=100)) == "Paris, of course."


def test_earlier_turns_are_context(tokenizer: Tokenizer) -> None:
    prompt = [
        Message(role="system", content="Be brief."),
        *USER,
        *ANSWER,
        Message(role="user", content="And of Spain?"),
    ]
    encoded = encode(tokenizer, prompt, [Message(role="assistant", content="Madrid.")], max_length=200)
    assert rated(tokenizer, encoded) == "Madrid.<|im_end|>"


def test_too_long_is_refused_and_nothing_is_cut(tokenizer: Tokenizer) -> None:
    with pytest.raises(Refused, match="training.max_length is 20") as verdict:
        encode(tokenizer, USER, ANSWER, max_length=20)
    assert verdict.value.reason == "too_long"
    length = len(encode(tokenizer, USER, ANSWER, max_length=1000).input_ids)
    assert len(encode(tokenizer, USER, ANSWER, max_length=length).input_ids) == length


def test_any_text_round_trips(tokenizer: Tokenizer) -> None:
    text = "naïve 🙂\u2028 line\x0b\ttab <|im_start|> \u05e9"
    assert rated(tokenizer, encode(tokenizer, USER, [Message(role="assistant", content=text)], max_length=500)) == (
        text + "<|im_end|>"
    )


def test_several_completion_messages_need_marks(tmp_path: Path) -> None:
    completion = [*ANSWER, Message(role="user", content="Sure?"), Message(role="assistant", content="Yes.")]
    plain = load_tokenizer(write_tiny_model(tmp_path / "plain"))
    with pytest.raises(Refused, match="generation"):
        encode(plain, USER, completion, max_length=200)
    marked = load_tokenizer(write_tiny_model(tmp_path / "marked", generation_markers=True))
    encoded = encode(marked, USER, completion, max_length=200)
    assert rated(marked, encoded) == "Paris, of course.<|im_end|>Yes.<|im_end|>"


def test_a_template_that_rewrites_the_prompt_is_refused(tokenizer: Tokenizer) -> None:
    template = tokenizer.chat_template
    tokenizer.chat_template = "{{ messages | length }}{% for m in messages %}{{ m['content'] }}{% endfor %}"
    try:
        with pytest.raises(Refused) as verdict:
            encode(tokenizer, USER, ANSWER, max_length=100)
        tokenizer.chat_template = "{{ raise_exception('only two turns') }}"
        with pytest.raises(Refused, match="only two turns") as error:
            encode(tokenizer, USER, ANSWER, max_length=100)
    finally:
        tokenizer.chat_template = template
    assert verdict.value.reason == "template_boundary"
    assert error.value.reason == "template_error"


def test_a_directory_without_template_or_tokenizer_is_named(tmp_path: Path) -> None:
    bare = write_tiny_model(tmp_path / "bare", chat_template=False)
    with pytest.raises(ModelError, match=r"bare: the tokenizer has no chat template.*chat_template.jinja"):
        load_tokenizer(bare)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelError, match="empty: cannot load a tokenizer"):
        load_tokenizer(tmp_path / "empty")


@pytest.mark.parametrize("tail", ["{{ '<|im_end|>\n' }}", "{{ '<|im_end|>\n<|pad|>' }}"], ids=["Gemma", "Phi"])
def test_the_first_end_token_ends_the_answer_whatever_the_template_adds(tmp_path: Path, tail: str) -> None:
    """A turn that ends with another token than the tokenizer's end of sequence, as with Gemma and Phi."""
    directory = write_tiny_model(tmp_path / "m")
    (directory / "generation_config.json").write_text(json.dumps({"eos_token_id": [2, 0]}))
    tokenizer = load_tokenizer(directory)
    assert tokenizer.convert_tokens_to_ids(["<|im_end|>", "<|pad|>"]) == [2, 0]
    tokenizer.eos_token = "<|pad|>"
    tokenizer.chat_template = (
        "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] }}" + tail + "{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    )
    ends = end_of_turn_ids(tokenizer, directory)
    assert ends == {0, 2}
    assert rated(tokenizer, encode(tokenizer, USER, ANSWER, ends=ends, max_length=100)) == "Paris, of course.<|im_end|>"
    cut = encode(tokenizer, USER, ANSWER, ends=ends, finished=False, max_length=100)
    assert rated(tokenizer, cut) == "Paris, of course."
