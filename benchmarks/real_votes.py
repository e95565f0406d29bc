"""Real votes: does the implicit reward rank held-out thumbs? Beside words, length and the untrained model.

    python benchmarks/real_votes.py --votes pandalm_thumbs.jsonl.gz --split prompt user --seeds 0 1 2
    python benchmarks/real_votes.py --votes helpsteer2/train.jsonl.gz --model /models/base     # on a GPU machine

Files of any importer; answers and votes apart are joined. Without `--model`, a small transformer is made of the
training side: its tokenizer, a language model on its answers, then each loss on its thumbs. With it, a local directory
is trained (LoRA; `--adapter none`: whole), in bfloat16 on CUDA. Whole prompts or whole people are held out, another
fold for each seed; every choice is made within the training side. Writes `results/real-votes-<name>-<split>.json` and
a picture.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bco_ray.config.environment import prepare_environment

Scores = dict[str, NDArray[np.float64]]
"""By judge: of each distinct answer, (A,); NaN where the answer does not fit into the model."""

BASELINE = "bag of words"


def main() -> None:
    arguments = _arguments()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    prepare_environment()
    from real_votes_chart import draw
    from real_votes_data import read_votes

    from bco_ray.telemetry import configure_logging

    configure_logging()
    votes = read_votes(arguments.votes)
    arguments.results.mkdir(parents=True, exist_ok=True)
    for by in arguments.split:
        for found in measure(votes, by, arguments):
            print(table(found), flush=True)  # noqa: T201
            path = arguments.results / f"real-votes-{found['name']}-{by}.json"
            path.write_text(json.dumps(found, indent=1) + "\n")
            draw(found, path.with_suffix(".png"))


def measure(votes: Any, by: Any, arguments: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """After each seed: every judge on the held-out votes of the seeds so far."""
    from real_votes_data import split
    from real_votes_intervals import Judged, over_seeds
    from real_votes_judges import judge_from_directory, judge_from_scratch

    started, judged, notes = time.process_time(), [], []
    with tempfile.TemporaryDirectory() as scratch:
        models = (judge_from_directory if arguments.model else judge_from_scratch)(arguments, Path(scratch), by)
        for seed in arguments.seeds:
            cut = split(votes, by, seed, arguments.seeds)
            scores, chosen = judges(votes, cut, by, seed, models)
            judged.append(Judged(seed, cut.test, scores))
            notes.append({"seed": seed, "train": len(cut.train), "test": len(cut.test), **chosen})
            yield {
                **about(votes, arguments),
                "split": by,
                "seeds": list(notes),
                "cpu_seconds": round(time.process_time() - started),
                **over_seeds(votes, by, judged, BASELINE),
            }


def about(votes: Any, arguments: argparse.Namespace) -> dict[str, Any]:
    """The machine, the model and the log."""
    return {
        "name": arguments.name or Path(arguments.votes[0]).name.split(".")[0],
        "machine": {"processor": platform.processor() or platform.machine(), "cores": os.cpu_count()},
        "model": arguments.model.name if arguments.model else "made from the training side",
        "log": {"read": votes.read, "kept": len(votes), "drops": votes.drops, "answers": len(votes.texts)},
        "prompts": len(np.unique(votes.prompt_N)),
        "users": len(np.unique(votes.user_N)),
    }


def judges(
    votes: Any, cut: Any, by: str, seed: int, models: Callable[..., tuple[Scores, dict[str, Any]]]
) -> tuple[Scores, dict[str, Any]]:
    """Scores of all judges after seeing the training side, and what was chosen on the way."""
    from real_votes_words import bag_of_words, lengths, votes_of_others

    scores, chosen = models(votes, cut, seed)
    words, strength = bag_of_words(votes, cut, crossed=False)
    crossed, of_crossed = bag_of_words(votes, cut, crossed=True)
    scores |= {BASELINE: words, "words, prompt x answer": crossed, "length": lengths(votes)}
    if by == "user":
        scores["others' votes on it"] = votes_of_others(votes, cut)
    return scores, {**chosen, "C": [strength, of_crossed]}


def table(found: dict[str, Any]) -> str:
    """Markdown: a row per judge, a column per seed, then the mean and what it has over the bag of words."""
    seeds = [str(note["seed"]) for note in found["seeds"]]
    lines = ["", f"{found['name']}, held out by {found['split']}, intervals over {found['clusters']}", ""]
    lines += [f"| | {' | '.join(seeds)} | mean | over {BASELINE} |", "|---" * (len(seeds) + 3) + "|"]
    for name, judge in found["judges"].items():
        cells = [f"{judge['seeds'][seed]:.3f}" for seed in seeds]
        lines.append(
            f"| {name} | {' | '.join(cells)} | {_said(judge['auc'], '.3f')} | {_said(judge['over'], '+.3f')} |"
        )
    return "\n".join(lines)


def _said(estimate: dict[str, Any], form: str) -> str:
    if estimate["low"] is None:
        return format(estimate["value"], form)
    return f"{estimate['value']:{form}} ({estimate['low']:{form}} to {estimate['high']:{form}})"


def _arguments(words: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--votes", nargs="+", required=True, help="files, globs or URIs, as in data.feedback")
    parser.add_argument("--name", help="of the results; else that of the first file")
    parser.add_argument("--split", nargs="+", choices=("prompt", "user"), default=["prompt"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--losses", nargs="+", default=["bco", "bce", "kto"])
    parser.add_argument("--epochs", type=int, help="of the alignment; else 1, with --model 3 below 50,000 votes")
    parser.add_argument("--model", type=Path, help="a local directory of a causal language model with a chat template")
    parser.add_argument("--adapter", choices=("lora", "none"), default="lora", help="with --model")
    parser.add_argument("--learning-rate", type=float, help="with --model; else what `auto` is in a spec")
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results")
    return parser.parse_args(words)


if __name__ == "__main__":
    main()
