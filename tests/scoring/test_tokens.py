"""From records to reference rows, one block at a time: what is rated, what is refused, and that the books balance."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from transformers import AutoModelForCausalLM

from bco_ray.feedback.records import POSITIONED_RECORDS
from bco_ray.models.policy import Policy
from bco_ray.objective import completion_logps
from bco_ray.schema import REFERENCE, TOKENS, Message, Record, record_to_row
from bco_ray.scoring.reference import ReferenceModel, ReferenceScorer, project
from bco_ray.scoring.tokens import TokenizeStage, prompt_hash, split_of
from bco_ray.storage.quarantine import Quarantine
from bco_ray.testing.tiny import write_tiny_model
from bco_ray.text import load_tokenizer


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("m") / "m")


def record(prompt: str = "Hi", answer: str = "Hello there.", **changes: Any) -> Record:
    asked, answered = Message(role="user", content=prompt), Message(role="assistant", content=answer)
    return Record.model_validate({"id": "r", "prompt": [asked], "completion": [answered], "label": True} | changes)


def block(*records: Record) -> pa.Table:
    rows = [{"file": "log", "position": n, **record_to_row(r)} for n, r in enumerate(records)]
    return pa.Table.from_pylist(rows, schema=POSITIONED_RECORDS)


def tokenize(model: Path, tmp_path: Path, *records: Record) -> pa.Table:
    stage = TokenizeStage(str(model), max_length=60, validation=0.5, quarantine=tmp_path / "tokenize")
    (tokens,) = stage(block(*records))
    return tokens


def rated(model: Path, row: dict[str, Any]) -> str:
    ids = [i for i, m in zip(row["input_ids"], row["completion_mask"], strict=True) if m]
    return str(load_tokenizer(model).decode(ids))


def test_kept_and_refused_rows_add_up(model: Path, tmp_path: Path) -> None:
    tokens = tokenize(
        model, tmp_path, record(), record("long " * 50), record(metadata={"endpoint": "text"}), record(label=False)
    )
    assert tokens.schema == TOKENS
    assert tokens["position"].to_pylist() == [0, 3]
    tally = Quarantine(tmp_path / "tokenize").tally()
    assert (tally.read, tally.kept, tally.drops) == (4, 2, {"raw_prompt": 1, "too_long": 1})


@pytest.mark.parametrize(
    ("metadata", "ends"),
    [({}, True), ({"finish_reason": "stop"}, True), ({"finish_reason": "length"}, False),
     ({"finish_reason": "stop", "ended": False}, False), ({"finish_reason": "stop", "ended": True}, True)],
)  # fmt: skip
def test_only_an_answer_that_ended_itself_teaches_to_end(
    model: Path, tmp_path: Path, metadata: dict[str, Any], ends: bool
) -> None:
    (row,) = tokenize(model, tmp_path, record(metadata=metadata)).to_pylist()
    assert rated(model, row) == "Hello there." + "<|im_end|>" * ends


def test_equal_prompts_share_a_side_and_sides_have_their_share() -> None:
    assert prompt_hash(record(answer="a")) == prompt_hash(record(answer="b", label=False)) != prompt_hash(record("Ho"))
    sides = [split_of(prompt_hash(record(f"q{n}")), 0.3) for n in range(2000)]
    assert 0.26 < sides.count("validation") / 2000 < 0.34
    assert {split_of(prompt_hash(record(f"q{n}")), 0.0) for n in range(50)} == {"train"}


def scorer(model: Path, tmp_path: Path, max_tokens: int = 200) -> ReferenceScorer:
    reference = ReferenceModel(str(model), dtype="float32", device="cpu", max_tokens=max_tokens, threads=1)
    return ReferenceScorer(reference, tmp_path / "reference")


def test_reference_rows_hold_the_models_own_log_probabilities(model: Path, tmp_path: Path) -> None:
    records = [record(f"Question {n}?" * (1 + n % 3), "Yes. " * (1 + n % 4)) for n in range(9)]
    tokens = tokenize(model, tmp_path, *records)
    rows = scorer(model, tmp_path, max_tokens=64)(tokens)
    assert rows.schema == REFERENCE
    assert rows["position"].to_pylist() == tokens["position"].to_pylist()
    lm = AutoModelForCausalLM.from_pretrained(model)
    for row in rows.to_pylist():
        ids_BT, mask_BT = torch.tensor([row["input_ids"]]), torch.tensor([row["completion_mask"]])
        with torch.no_grad():
            expected = completion_logps(lm(ids_BT).logits, ids_BT, mask_BT).item()
        assert row["reference_logp"] == pytest.approx(expected, rel=1e-5)
    same_prompt = scorer(model, tmp_path)(tokenize(model, tmp_path, record(answer="One."), record(answer="Two!")))
    first, second = same_prompt["embedding"].to_pylist()
    np.testing.assert_allclose(first, second, atol=1e-5)  # an embedding is the prompt's, whatever the answer


def test_rows_the_model_cannot_judge_are_refused(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tokens = tokenize(model, tmp_path, *[record(f"q{n}") for n in range(4)])
    score = Policy.score

    def spoiled(policy: Policy, *batch: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        logps_B, embedding_BD = score(policy, *batch)
        return logps_B.clone().index_fill(0, torch.tensor([1]), float("nan")), embedding_BD

    monkeypatch.setattr(Policy, "score", spoiled)
    rows = scorer(model, tmp_path)(tokens)
    assert rows.num_rows == 3
    tally = Quarantine(tmp_path / "reference").tally()
    assert (tally.read, tally.drops) == (4, {"non_finite_reference": 1})


def test_wide_embeddings_are_projected_and_distances_survive() -> None:
    points = torch.randn(6, 2000, generator=torch.Generator().manual_seed(1))
    projected = project(points, width=1000)
    assert projected.shape == (6, 1000)
    ratio = torch.cdist(projected, projected)[0, 1:] / torch.cdist(points, points)[0, 1:]
    assert ((ratio - 1).abs() < 0.15).all()
    assert project(points, width=4000) is points
