"""The work both sides do: a model, its votes in the order they are trained on, and the FLOPs that takes.

`python training_task.py ORDER.json` writes `<directory>/task.json`. Rows exist twice: as text for TRL and as scored
shards for us, made of the ids TRL ends up with: it appends the end token, and a begin token, if any, comes first.
"""

from __future__ import annotations

import json
import shutil
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import transformers
from torch import nn
from training_meter import read_order

from bco_ray.models.loading import load_frozen
from bco_ray.models.packing import lay_out
from bco_ray.models.policy import Policy
from bco_ray.schema import SCORED
from bco_ray.storage.scored import ScoredManifest, ShardFacts, commit_scored
from bco_ray.testing.tiny import save, train_tokenizer
from bco_ray.training.plan import Plan, ShardCounts

SIZES = {
    "small": {"vocab_size": 8192, "hidden_size": 192, "intermediate_size": 512, "num_hidden_layers": 3},
    "25m": {"vocab_size": 32768, "hidden_size": 384, "intermediate_size": 1024, "num_hidden_layers": 7},
    "90m": {"vocab_size": 131072, "hidden_size": 512, "intermediate_size": 1376, "num_hidden_layers": 8},
}
"""Parameters: 2.9, 25 and 91 million; the last is two thirds vocabulary."""

HEAD_WIDTH = 64
CHOSEN_SHARE = 0.6
SHARD = "part-00000.parquet"
Vote = dict[str, Any]


def make_model(directory: Path, size: str) -> None:
    """A random Llama with tied embeddings and a tokenizer of `words`."""
    tokenizer = train_tokenizer([" ".join(words())], vocab=2048, chat_template=None)
    numbers = SIZES[size]
    heads = numbers["hidden_size"] // HEAD_WIDTH
    config = transformers.LlamaConfig(
        **numbers, num_attention_heads=heads, num_key_value_heads=heads, max_position_embeddings=4096,
        tie_word_embeddings=True, bos_token_id=None, eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id, dtype="float32",
    )  # fmt: skip
    torch.manual_seed(0)
    save(transformers.LlamaForCausalLM(config), tokenizer, directory)


def words() -> list[str]:
    """A thousand made-up words of two to four syllables."""
    random = np.random.default_rng(0)
    syllables = [consonant + vowel for consonant in "bdfgklmnprstvz" for vowel in "aeiou"]
    return ["".join(random.choice(syllables, random.integers(2, 5))) for _ in range(1000)]


def make_votes(rows: int, median_words: int, seed: int, tokenizer: Any) -> list[Vote]:
    """Votes whose lengths are log-normal: a prompt of a third of `median_words`, an answer of two thirds, most more."""
    random, vocabulary = np.random.default_rng(seed), words()
    chosen = random.permutation(np.arange(rows) < round(rows * CHOSEN_SHARE))
    votes = []
    for label in chosen:
        prompt = _text(random, vocabulary, median_words / 3, 0.6)
        answer = " " + _text(random, vocabulary, median_words * 2 / 3, 0.8)
        votes.append({"prompt": prompt, "completion": answer, "label": bool(label), **_ids(tokenizer, prompt, answer)})
    return votes


def _text(random: np.random.Generator, vocabulary: list[str], median: float, spread: float) -> str:
    count = int(np.clip(random.lognormal(np.log(median), spread), 3, 8 * median))
    return " ".join(random.choice(vocabulary, count))


def _ids(tokenizer: Any, prompt: str, answer: str) -> Vote:
    before = tokenizer(prompt, add_special_tokens=False)["input_ids"]
    ids = [*tokenizer(prompt + answer, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
    if ids[: len(before)] != before:
        raise ValueError("the tokenizer merges prompt and completion; this benchmark needs one that does not")
    begin = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    mask = [False] * (len(begin) + len(before)) + [True] * (len(ids) - len(before))
    return {"input_ids": begin + ids, "completion_mask": mask}


@torch.inference_mode()
def reference(votes: list[Vote], model: str, precision: str, device: str) -> list[float]:
    """The reference's log-probability of each answer, by our scoring path, a row at a time."""
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    policy = Policy(load_frozen(model, dtype=dtype)).to(device)
    packs = (lay_out([np.asarray(v["input_ids"])], [np.asarray(v["completion_mask"])]) for v in votes)
    return [float(policy(pack.to(device))[0]) for pack in packs]


def write_shard(directory: Path, votes: list[Vote], logps: list[float]) -> None:
    """All votes as one finished shard."""
    rows = [
        {"file": "made", "position": i, "entry": 0, "id": str(i), "user": None, "source": None, "split": "train",
         "prompt_hash": i, "label": vote["label"], "n_tokens": len(vote["input_ids"]), "weight": 1.0,
         "input_ids": vote["input_ids"], "completion_mask": vote["completion_mask"], "reference_logp": logp}
        for i, (vote, logp) in enumerate(zip(votes, logps, strict=True))
    ]  # fmt: skip
    directory.mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist(rows, schema=SCORED), directory / SHARD)
    chosen, tokens = sum(vote["label"] for vote in votes), sum(row["n_tokens"] for row in rows)
    facts = ShardFacts(
        file=SHARD, train_chosen=chosen, train_rejected=len(votes) - chosen, validation_chosen=0,
        validation_rejected=0, train_tokens=tokens,
    )  # fmt: skip
    manifest = ScoredManifest(inputs={}, read=len(rows), kept=len(rows), drops={}, matching={}, shards=[facts])
    commit_scored(directory, manifest)


def in_training_order(votes: list[Vote], window_rows: int) -> Iterator[int]:
    """Row numbers in the order our first epoch visits them; TRL's trainers do not shuffle."""
    by_label = {label: [i for i, vote in enumerate(votes) if vote["label"] is label] for label in (True, False)}
    counts = ShardCounts(len(by_label[True]), len(by_label[False]))
    for window in Plan((counts,), window_rows, epochs=1, seed=0).windows():
        yield from (by_label[row.label][row.place] for row in window.rows)


def window_flops(votes: list[Vote], model: str) -> float:
    """FLOPs that training on these votes needs, the same for every side: a multiply-add is two, backward twice forward.

    6 x weights of all linear layers x tokens, for the head 6 x hidden x vocabulary x completion tokens only, and for
    causal attention 6 x layers x heads x head width x length^2 per row. Padding, recomputed forwards, the reference's
    and KTO's further forwards and logits at other positions are not needed and count nothing.
    """
    config = transformers.AutoConfig.from_pretrained(model)
    with torch.device("meta"):
        lm = transformers.AutoModelForCausalLM.from_config(config)
    head = lm.get_output_embeddings()
    body = sum(m.weight.numel() for m in lm.modules() if isinstance(m, nn.Linear) and m is not head)
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    attention = config.num_hidden_layers * config.num_attention_heads * width
    lengths = [len(vote["input_ids"]) for vote in votes]
    scored = sum(sum(vote["completion_mask"]) for vote in votes)
    squares = sum(length**2 for length in lengths)
    return 6.0 * float(body * sum(lengths) + head.weight.numel() * scored + attention * squares)


def facts(votes: list[Vote], logps: list[float], model: str, window_rows: int) -> dict[str, Any]:
    """What the report checks and divides by; `votes` in training order."""
    windows = [votes[start : start + window_rows] for start in range(0, len(votes), window_rows)]
    first = [
        {"tokens": len(v["input_ids"]), "scored": sum(v["completion_mask"]), "label": v["label"],
         "ids": zlib.crc32(json.dumps(v["input_ids"]).encode())}
        for v in windows[0]
    ]  # fmt: skip
    return {
        "tokens": [sum(len(v["input_ids"]) for v in window) for window in windows],
        "flops": [window_flops(window, model) for window in windows],
        "longest": max(len(v["input_ids"]) for v in votes),
        "first_rows": first,
        "first_logps": logps[:window_rows],
    }


def main(path: str) -> None:
    """Write the task. An order whose task is there already is done; another one's remains are replaced."""
    order = read_order(path)
    directory = Path(order["directory"])
    done = directory / "task.json"
    if done.is_file() and json.loads(done.read_text())["order"] == order:
        return
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    if order["size"] in SIZES and not (Path(order["model"]) / "config.json").is_file():
        make_model(Path(order["model"]), order["size"])
    tokenizer = transformers.AutoTokenizer.from_pretrained(order["model"])
    votes = make_votes(order["window_rows"] * order["windows"], order["median_words"], order["seed"], tokenizer)
    logps = reference(votes, order["model"], order["precision"], order["device"])
    write_shard(directory / "scored", votes, logps)
    ordered = list(in_training_order(votes, order["window_rows"]))
    rows = [{name: votes[i][name] for name in ("prompt", "completion", "label")} for i in ordered]
    (directory / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = {
        "order": order, "model": order["model"], "window_rows": order["window_rows"],
        "scored": str(directory / "scored"), "rows": str(directory / "rows.jsonl"),
        **facts([votes[i] for i in ordered], [logps[i] for i in ordered], order["model"], order["window_rows"]),
    }  # fmt: skip
    done.write_text(json.dumps(task))


if __name__ == "__main__":
    main(sys.argv[1])
