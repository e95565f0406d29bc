"""Held-out prompts come from the validation split alone, each once, the same ones for the same seed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bco_ray.evaluation.prompts import as_text, held_out_prompts
from bco_ray.schema import SCORED, SETTLED
from bco_ray.storage.scored import ScoredManifest, ShardFacts


@pytest.fixture
def places(tmp_path: Path) -> tuple[Path, ScoredManifest, Path]:
    """Two shards of 20 prompts with two votes each; even prompts are held out, every tenth one comes with tools."""
    facts = []
    for part in range(2):
        name, scored, settled = f"part-{part}.parquet", [], []
        for n in range(20):
            for vote in range(2):
                prompt = json.dumps([{"role": "user", "content": f"{part}-{n}?"}])
                settled.append({"prompt_hash": 100 * part + n, "prompt": prompt,
                                "tools": "[]" if n % 10 == 0 else None})  # fmt: skip
                scored.append({"split": "train" if n % 2 else "validation", "prompt_hash": 100 * part + n,
                               "weight": 1.0, "id": f"{part}-{n}-{vote}", "user": "u-a" if vote else None})  # fmt: skip
        scored[4] |= {"id": None, "user": None, "weight": 0.0}  # erased
        write(tmp_path / "scored" / name, scored, SCORED)
        write(tmp_path / "records" / name, settled, SETTLED)
        facts.append(ShardFacts(file=name, train_chosen=20, train_rejected=0, validation_chosen=20,
                                validation_rejected=0, train_tokens=1))  # fmt: skip
    manifest = ScoredManifest(inputs={}, read=80, kept=80, drops={}, matching={}, shards=facts)
    return tmp_path / "scored", manifest, tmp_path / "records"


def write(path: Path, rows: list[dict[str, Any]], schema: pa.Schema) -> None:
    path.parent.mkdir(exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), path)


def test_only_held_out_ones_and_each_once(places: tuple[Path, ScoredManifest, Path]) -> None:
    scored, manifest, records = places
    found = held_out_prompts(scored, manifest, records, count=100, seed=0)
    said = [prompt.messages[0]["content"] for prompt in found]
    assert len(said) == len(set(said)) == 16  # ten each, without two that come with tools
    assert all(int(text.rstrip("?").split("-")[1]) % 2 == 0 for text in said)
    by_text = {prompt.messages[0]["content"]: prompt for prompt in found}
    assert (by_text["1-4?"].votes, by_text["1-4?"].users) == (["1-4-0", "1-4-1"], ["u-a"])
    assert by_text["0-2?"].votes == ["0-2-1"]


def test_the_seed_picks_them(places: tuple[Path, ScoredManifest, Path]) -> None:
    scored, manifest, records = places

    def picked(seed: int) -> list[str]:
        found = held_out_prompts(scored, manifest, records, count=5, seed=seed)
        return [prompt.messages[0]["content"] for prompt in found]

    assert picked(1) == picked(1)
    assert len(picked(1)) == 5
    assert len({tuple(picked(seed)) for seed in range(5)}) > 1
    assert held_out_prompts(scored, manifest, records, count=0, seed=0) == []


def test_a_conversation_as_a_judge_reads_it() -> None:
    assert as_text([{"role": "user", "content": "Hi"}]) == "Hi"
    parts = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": [{"type": "text", "text": "Hi"}]}]
    assert as_text(parts) == "system: Be kind.\n\nuser: Hi"
