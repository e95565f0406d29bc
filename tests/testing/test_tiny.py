"""The tiny model is a real Hugging Face directory: it loads by the Auto classes and its tokenizer loses nothing."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, AutoTokenizer

from bco_ray.testing.tiny import SPECIALS, write_tiny_model

CHAT = [
    {"role": "system", "content": "Be kind."},
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Hello!"},
]


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return write_tiny_model(tmp_path_factory.mktemp("tiny") / "model")


@pytest.fixture(scope="module")
def tokenizer(directory):
    return AutoTokenizer.from_pretrained(directory)


def test_it_loads_as_a_causal_lm_in_float32(directory, tokenizer):
    model = AutoModelForCausalLM.from_pretrained(directory)
    assert model.dtype == torch.float32
    assert model.config.vocab_size == len(tokenizer)
    assert model.generation_config.eos_token_id == [tokenizer.convert_tokens_to_ids("<|im_end|>")]
    assert (directory / "model.safetensors").is_file()


def test_special_tokens_are_single_ids(tokenizer):
    assert [len(tokenizer(token)["input_ids"]) for token in SPECIALS] == [1, 1, 1]
    assert tokenizer.eos_token == "<|im_end|>"
    assert tokenizer.pad_token == "<|pad|>"


def _says_a_special(text):
    return any(token in text for token in SPECIALS)


@settings(max_examples=60, deadline=None)
@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=60).filter(lambda text: not _says_a_special(text)))
def test_any_text_comes_back(tokenizer, text):
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_chatml_renders_turns_and_the_generation_prompt(tokenizer):
    text = tokenizer.apply_chat_template(CHAT[:2], tokenize=False, add_generation_prompt=True)
    assert text == ("<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n")


def test_default_template_has_no_generation_marks(tokenizer):
    assert "generation %}" not in tokenizer.chat_template


def test_marked_template_renders_the_same_ids_and_marks_the_answer(tmp_path, tokenizer):
    marked = AutoTokenizer.from_pretrained(write_tiny_model(tmp_path / "marked", generation_markers=True))
    encoded = marked.apply_chat_template(CHAT, tokenize=True, return_dict=True, return_assistant_tokens_mask=True)
    rated = [i for i, m in zip(encoded["input_ids"], encoded["assistant_masks"], strict=True) if m]
    assert marked.decode(rated) == "Hello!<|im_end|>"
    assert encoded["input_ids"] == tokenizer.apply_chat_template(CHAT, tokenize=True, return_dict=True)["input_ids"]


def test_chat_template_can_be_left_out(tmp_path):
    assert not AutoTokenizer.from_pretrained(write_tiny_model(tmp_path / "m", chat_template=False)).chat_template


def test_seed_decides_the_weights_and_the_global_generator_is_untouched(tmp_path):
    before = torch.random.get_rng_state()
    a, b, c = (
        AutoModelForCausalLM.from_pretrained(write_tiny_model(tmp_path / name, seed=seed)).get_input_embeddings().weight
        for name, seed in [("a", 1), ("b", 1), ("c", 2)]
    )
    assert torch.equal(before, torch.random.get_rng_state())
    assert torch.equal(a, b)
    assert not torch.equal(a, c)
