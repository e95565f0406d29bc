"""Judges that are language models: a small one made of each seed's training side, or a directory's; then trained."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from real_votes_data import By, Split, Votes
from real_votes_intervals import auc
from real_votes_models import Machine, Recipe, Shape, align, completion_lengths, fit_small, logps, tokens_of

from bco_ray.config import parse_spec
from bco_ray.pipeline.resolve import auto_learning_rate

VOCABULARIES = (512, 2048)
SMALL = Shape(vocabulary=0, hidden=32, layers=2, epochs=4, learning_rate=8e-3)
"""The vocabulary is chosen, and after how many of its epochs to stop."""

LEARNING_RATES = (1e-3, 4e-3)
SMALL_ROWS_PER_STEP, ROWS_PER_STEP = 16, 128
MANY_VOTES = 50_000

Judge = Callable[[Votes, Split, int], tuple[dict[str, NDArray[np.float64]], dict[str, Any]]]
"""Of votes, how they are cut and a seed: scores of answers by judge's name, and what was chosen."""


def judge_from_scratch(arguments: argparse.Namespace, scratch: Path, by: By) -> Judge:
    """A model made here. What is chosen on the same votes is chosen once."""
    machine = Machine("cpu", bf16=False, max_tokens=2048, max_length=1024)
    known: dict[bytes, tuple[Shape, int, float]] = {}

    def judge(votes: Votes, cut: Split, seed: int) -> tuple[dict[str, NDArray[np.float64]], dict[str, Any]]:
        key = cut.quick_train.tobytes()
        epochs = arguments.epochs or 1
        if key not in known:
            known[key] = _choose(votes, cut, scratch / f"{by}-{seed}-choice", machine, epochs, seed)
        shape, lm_epochs, rate = known[key]
        base = scratch / f"{by}-{seed}" / "base"
        fit_small(base, votes, cut.train, shape, machine, seed=seed, epochs=lm_epochs)
        recipes = [Recipe(loss, rate, epochs, SMALL_ROWS_PER_STEP) for loss in arguments.losses]
        chosen = {"vocabulary": shape.vocabulary, "lm_epochs": lm_epochs, "learning_rate": rate}
        return _scores(votes, cut, base, recipes, machine, seed), chosen

    return judge


def judge_from_directory(arguments: argparse.Namespace, scratch: Path, by: By) -> Judge:
    """The model in `--model`, as it is."""
    cuda = torch.cuda.is_available()
    machine = Machine("cuda" if cuda else "cpu", bf16=cuda, max_tokens=0 if cuda else 4096, max_length=2048)
    adapter = {"r": 16, "alpha": 32.0, "target_modules": "all-linear"} if arguments.adapter == "lora" else None
    model = {"base": str(arguments.model), "adapter": None if adapter is None else {"type": "lora", **adapter}}
    spec = parse_spec({"name": "real-votes", "model": model, "data": {"feedback": arguments.votes}}, where="--model")
    rate = arguments.learning_rate or auto_learning_rate(spec, str(arguments.model))

    def judge(votes: Votes, cut: Split, seed: int) -> tuple[dict[str, NDArray[np.float64]], dict[str, Any]]:
        epochs = arguments.epochs or (1 if len(cut.train) >= MANY_VOTES else 3)
        recipes = [
            Recipe(loss, rate, epochs, ROWS_PER_STEP, adapter=adapter, gradient_checkpointing=cuda)
            for loss in arguments.losses
        ]
        scores = _scores(votes, cut, arguments.model, recipes, machine, seed, scratch / f"{by}-{seed}")
        return scores, {"learning_rate": rate, "epochs": epochs, "adapter": arguments.adapter, "device": machine.device}

    return judge


def _scores(
    votes: Votes, cut: Split, base: Path, recipes: list[Recipe], machine: Machine, seed: int, runs: Path | None = None
) -> dict[str, NDArray[np.float64]]:
    """Implicit reward of each training, and the likelihoods of the model that they start from."""
    tokens = tokens_of(votes, base, machine)
    needed = np.unique(votes.answer_N[np.concatenate([cut.train, cut.test])])
    reference_A = logps(base, tokens, machine, needed)
    tested = np.unique(votes.answer_N[cut.test])
    scores = {}
    for recipe in recipes:
        run = (runs or base.parent) / recipe.loss
        trained = align(base, run, votes, tokens, cut.train, recipe, machine, reference_A, seed)
        scores[f"{recipe.loss}: implicit reward"] = recipe.beta * (
            logps(trained, tokens, machine, tested) - reference_A
        )
    scores["untrained: log p"] = reference_A
    scores["untrained: log p per token"] = reference_A / np.maximum(completion_lengths(tokens), 1)
    return scores


def _choose(
    votes: Votes, cut: Split, scratch: Path, machine: Machine, epochs: int, seed: int
) -> tuple[Shape, int, float]:
    """Vocabulary and number of epochs by likelihood per character, the learning rate by the AUC of BCO's reward."""
    curves = {}
    for vocabulary in VOCABULARIES:
        shape = _with(vocabulary)
        curves[vocabulary] = fit_small(
            scratch / f"lm-{vocabulary}", votes, cut.quick_train, shape, machine, seed=seed, valid=cut.quick_valid
        )
    vocabulary = min(VOCABULARIES, key=lambda size: min(curves[size]))
    base = scratch / f"lm-{vocabulary}"
    tokens = tokens_of(votes, base, machine)
    needed = np.unique(votes.answer_N[np.concatenate([cut.quick_train, cut.quick_valid])])
    reference_A = logps(base, tokens, machine, needed)

    def judged(rate: float) -> float:
        recipe = Recipe("bco", rate, epochs, SMALL_ROWS_PER_STEP)
        run = scratch / f"bco-{rate}"
        trained = align(base, run, votes, tokens, cut.quick_train, recipe, machine, reference_A, seed)
        reward_A = logps(trained, tokens, machine, np.unique(votes.answer_N[cut.quick_valid])) - reference_A
        return auc(reward_A, votes, cut.quick_valid)

    return _with(vocabulary), int(np.argmin(curves[vocabulary])) + 1, max(LEARNING_RATES, key=judged)


def _with(vocabulary: int) -> Shape:
    return replace(SMALL, vocabulary=vocabulary)
