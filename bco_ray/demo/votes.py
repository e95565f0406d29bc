"""People of the small world: they ask the model, some leave a thumb, and the log of it is as untidy as a real one."""

from __future__ import annotations

import json
import math
import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bco_ray.demo.base import WORLD, load_model
from bco_ray.demo.world import LABEL_NOISE, TOPICS, Prompt, Sample, World, judge, thumbs_up
from bco_ray.evaluation.judging import wilson
from bco_ray.models.generate import generate
from bco_ray.telemetry import Advance

MAX_NEW_TOKENS = 64
PEOPLE = 60
BROKEN = 0.01
FIRST_VOTE = 1_767_225_600.0  # 2026-01-01, unix seconds

Vote = dict[str, Any]
"""A row of the feedback log as importers accept it."""


@dataclass(frozen=True)
class Judgement:
    """`interval` is Wilson's 95 % for the rate over `answers` answers; `topics` holds the rate by topic."""

    thumbs_up_rate: float
    interval: tuple[float, float]
    answers: int
    styles: dict[str, int]
    topics: dict[str, float]
    samples: list[Sample]


def sample_votes(
    model_dir: str | Path,
    *,
    rows: int = 3000,
    seed: int = 0,
    world: World = WORLD,
    model_name: str = "base",
    progress: Advance | None = None,
) -> list[Vote]:
    """`rows` votes on answers sampled from that very model at temperature 1, to prompts that are not held out."""
    model, tokenizer = load_model(model_dir)
    rng = random.Random(seed)
    votes: list[Vote] = []
    while len(votes) < rows:
        asked = [rng.choice(world.train_prompts) for _ in range(int((rows - len(votes)) / 0.6) + 8)]
        answers = generate(
            model, tokenizer, [p.messages for p in asked],
            max_new_tokens=MAX_NEW_TOKENS, temperature=1.0, seed=rng.getrandbits(32), progress=progress,
        )  # fmt: skip
        for prompt, answer in zip(asked, answers, strict=True):
            label = leave_thumb(prompt, answer.text, rng)
            if label is not None and answer.text:
                votes.append(_vote(f"{model_name}-{seed}-{len(votes):05d}", prompt, answer.text, label, rng))
    return [vote | {"model": model_name, "created_at": FIRST_VOTE + 40.0 * n} for n, vote in enumerate(votes[:rows])]


def leave_thumb(prompt: Prompt, answer: str, rng: random.Random) -> bool | None:
    """True, False, or None for no vote. Noisy, and unhappy people complain about some topics more than others."""
    happy = thumbs_up(prompt, answer) != (rng.random() < LABEL_NOISE)
    topic = TOPICS[prompt.topic]
    return happy if rng.random() < (topic.happy if happy else topic.unhappy) else None


def _vote(name: str, prompt: Prompt, answer: str, label: bool, rng: random.Random) -> Vote:
    return {
        "id": name,
        "prompt": prompt.messages,
        "completion": [{"role": "assistant", "content": answer}],
        "label": label,
        "source": rng.choice(["web", "app"]),
        "user": f"user-{rng.randrange(PEOPLE):02d}",
    }


def write_log(path: str | Path, votes: Sequence[Vote], *, seed: int = 0, broken: float = BROKEN) -> int:
    """Write votes as JSON lines with a share of `broken` extra lines scattered in; returns the number of lines."""
    rng = random.Random(seed)
    lines = [json.dumps(vote, ensure_ascii=False) for vote in votes]
    for n in range(math.ceil(broken * len(votes))):
        spoiled = _SPOILERS[n % len(_SPOILERS)](votes[rng.randrange(len(votes))] | {"id": f"broken-{seed}-{n:03d}"})
        lines.insert(rng.randrange(len(lines) + 1), spoiled)
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text("\n".join(lines) + "\n", encoding="utf-8")
    return len(lines)


_SPOILERS: tuple[Callable[[Vote], str], ...] = (
    lambda vote: json.dumps(vote | {"completion": []}),
    lambda vote: json.dumps(vote | {"completion": True}),
    lambda vote: json.dumps(vote | {"label": "maybe"}),
    lambda vote: json.dumps(vote)[:-9],  # a line cut off by a full disk: not JSON
)


def judge_model(
    model_dir: str | Path,
    prompts: Sequence[Prompt],
    *,
    seed: int = 0,
    temperature: float = 0.8,
    progress: Advance | None = None,
) -> Judgement:
    """One sampled answer per prompt, judged by the rule without noise."""
    model, tokenizer = load_model(model_dir)
    answers = generate(
        model, tokenizer, [p.messages for p in prompts],
        max_new_tokens=MAX_NEW_TOKENS, temperature=temperature, seed=seed, progress=progress,
    )  # fmt: skip
    return judge_answers(prompts, [answer.text for answer in answers])


def judge_answers(prompts: Sequence[Prompt], answers: Sequence[str]) -> Judgement:
    """What the rule says of answers that came from anywhere, a server for one. Samples: the first of each topic."""
    read = [(prompt.topic, judge(prompt, answer)) for prompt, answer in zip(prompts, answers, strict=True)]
    by_topic: dict[str, list[Sample]] = {}
    for topic, sample in read:
        by_topic.setdefault(topic, []).append(sample)
    ups = sum(sample.up for _, sample in read)
    return Judgement(
        thumbs_up_rate=ups / len(read),
        interval=wilson(ups, len(read)),
        answers=len(read),
        styles=dict(Counter(sample.style for _, sample in read).most_common()),
        topics={topic: sum(s.up for s in samples) / len(samples) for topic, samples in by_topic.items()},
        samples=[samples[0] for samples in by_topic.values()],
    )
