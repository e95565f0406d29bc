"""Sampling: order kept, seeds obeyed, end tokens honoured, the caller's state untouched."""

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from bco_ray.errors import ModelError
from bco_ray.models.generate import end_token_ids, generate
from bco_ray.testing.tiny import write_tiny_model

PROMPTS = [
    [{"role": "user", "content": text}] for text in ("Hello!", "Hi", "What is the capital of France?", "Tell me")
]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    directory = write_tiny_model(tmp_path_factory.mktemp("tiny"))
    return AutoModelForCausalLM.from_pretrained(directory), AutoTokenizer.from_pretrained(directory)


def test_the_same_seed_gives_the_same_answers(tiny):
    def sample(seed):
        return generate(*tiny, PROMPTS, max_new_tokens=8, temperature=1.0, seed=seed)

    assert sample(1) == sample(1)
    assert sample(1) != sample(2)


def test_greedy_answers_do_not_depend_on_the_batch_and_keep_the_order(tiny):
    together = generate(*tiny, PROMPTS, max_new_tokens=6, temperature=0, seed=0)
    alone = [generate(*tiny, [prompt], max_new_tokens=6, temperature=0, seed=0)[0] for prompt in PROMPTS]
    assert together == alone
    assert together == generate(*tiny, PROMPTS, max_new_tokens=6, temperature=0, seed=9, batch_size=3)


def test_greedy_takes_the_likeliest_token_after_the_rendered_prompt(tiny):
    model, tokenizer = tiny
    ids = tokenizer.apply_chat_template(PROMPTS[0], add_generation_prompt=True, return_tensors="pt", return_dict=True)
    likeliest = int(model(**ids).logits[0, -1].argmax())
    assert generate(*tiny, PROMPTS[:1], max_new_tokens=1, temperature=0, seed=0)[0].token_ids == [likeliest]


def test_any_of_several_end_tokens_stops(tiny, monkeypatch):
    model, tokenizer = tiny
    first, second = generate(*tiny, PROMPTS[:1], max_new_tokens=2, temperature=1.0, seed=4)[0].token_ids
    assert first != second
    monkeypatch.setattr(model.generation_config, "eos_token_id", [2, second])
    assert end_token_ids(model, tokenizer) == {2, second}
    (answer,) = generate(*tiny, PROMPTS[:1], max_new_tokens=9, temperature=1.0, seed=4)
    assert (answer.token_ids, answer.finish_reason) == ([first], "stop")


def test_an_answer_that_was_cut_says_so(tiny):
    answers = generate(*tiny, PROMPTS, max_new_tokens=1, temperature=0, seed=0)
    assert [a.finish_reason for a in answers] == ["length"] * len(PROMPTS)
    assert [len(a.token_ids) for a in answers] == [1] * len(PROMPTS)


def test_the_callers_random_state_and_the_models_mode_are_left_alone(tiny):
    model, _ = tiny
    model.train()
    before = torch.random.get_rng_state()
    generate(*tiny, PROMPTS, max_new_tokens=3, temperature=1.0, seed=0)
    assert torch.equal(before, torch.random.get_rng_state())
    assert model.training
    model.eval()


def test_progress_counts_answers(tiny):
    seen = []
    generate(
        *tiny, PROMPTS, max_new_tokens=1, temperature=0, seed=0, batch_size=3, progress=lambda *call: seen.append(call)
    )
    assert [call[:2] for call in seen] == [(3, 4), (4, 4)]


def test_no_prompts_no_answers(tiny):
    assert generate(*tiny, [], max_new_tokens=1, temperature=0, seed=0) == []


def test_a_tokenizer_without_template_is_refused(tiny, tmp_path):
    bare = AutoTokenizer.from_pretrained(write_tiny_model(tmp_path / "bare", chat_template=False))
    with pytest.raises(ModelError, match="chat template"):
        generate(tiny[0], bare, PROMPTS, max_new_tokens=1, temperature=0, seed=0)
