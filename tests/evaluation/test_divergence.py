"""KL(model || reference) by the model's own answers: the same numbers as by hand, and an estimate of the true one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from transformers import AutoModelForCausalLM

from bco_ray.evaluation.answering import Answer, Answerer, Sampling
from bco_ray.evaluation.divergence import Likelihoods, _items
from bco_ray.evaluation.heldout import Machine
from bco_ray.testing.tiny import write_tiny_model

MACHINE = Machine(
    max_tokens=256, dtype="float32", quantization="none", device="cpu", threads=1, num_workers=1, num_gpus=0
)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    root = tmp_path_factory.mktemp("divergence")
    return sharpened(write_tiny_model(root / "model", seed=1)), sharpened(write_tiny_model(root / "reference", seed=2))


def sharpened(directory: Path) -> Path:
    """With preferences that are less alike than those of fresh weights."""
    lm = AutoModelForCausalLM.from_pretrained(directory)
    with torch.no_grad():
        lm.get_output_embeddings().weight *= 6
    lm.save_pretrained(directory)
    return directory


def sampled(directory: Path, count: int, *, temperature: float = 1.0, new: int = 1) -> list[Answer]:
    """Answers to one prompt; only what was sampled differs."""
    prompts = [[{"role": "user", "content": "Hi"}]] * count
    found = Answerer(str(directory), MACHINE).answer(prompts, Sampling(new, temperature, seed=0))
    return [Answer(**each) for each in found]


def log_ratios(answers: list[Answer], model: Path, reference: Path) -> Any:
    """As the stage does it, without Ray."""
    scorer, found = Likelihoods(MACHINE), np.zeros((2, len(answers)))
    for place, directory in enumerate((model, reference)):
        for item in _items(place, str(directory), answers):
            table = scorer(pa.Table.from_pylist([item]))
            found[table["model"].to_numpy(), table["answer"].to_numpy()] = table["logp"].to_numpy()
    return found[0] - found[1]


def chances(directory: Path, ids: list[int]) -> torch.Tensor:
    lm = AutoModelForCausalLM.from_pretrained(directory)
    with torch.no_grad():
        return lm(torch.tensor([ids])).logits[0].float().log_softmax(-1)


def test_each_token_that_was_said_counts_and_the_end_too(models: tuple[Path, Path]) -> None:
    model, reference = models
    answers = sampled(model, 40, new=5)
    ended = [answer for answer in answers if len(answer.ids) == answer.tokens + 1]
    assert all(len(answer.ids) in (answer.tokens, answer.tokens + 1) for answer in answers)
    said = [*ended[:1], *answers[:3]]
    by_hand = []
    for answer in said:
        ids, start = [*answer.prompt_ids, *answer.ids], len(answer.prompt_ids)
        ours, theirs = (chances(directory, ids) for directory in models)
        by_hand.append(sum(float(ours[t - 1, ids[t]] - theirs[t - 1, ids[t]]) for t in range(start, len(ids))))
    assert log_ratios(said, model, reference) == pytest.approx(by_hand, abs=1e-3)


def test_the_mean_is_the_divergence_where_it_is_known(models: tuple[Path, Path]) -> None:
    """Of answers of one token: sum p (log p - log q). Answers at another temperature would say something else."""
    model, reference = models
    answers = sampled(model, 1500)
    ours_V, theirs_V = (chances(directory, list(answers[0].prompt_ids))[-1] for directory in models)
    truth = float((ours_V.exp() * (ours_V - theirs_V)).sum())
    ratios_N = log_ratios(answers, model, reference)
    error = ratios_N.std() / len(ratios_N) ** 0.5
    assert abs(ratios_N.mean() - truth) < 4 * error
    assert truth > 5 * error  # it is told apart from none at all
    assert log_ratios(answers[:20], model, model) == pytest.approx(np.zeros(20))
