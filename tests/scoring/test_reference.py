"""The reference pass: numbers are the model's own, each distinct row and prompt is run once, what is cached never."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from transformers import AutoModelForCausalLM

from bco_ray.models.packing import Pack
from bco_ray.models.policy import Policy
from bco_ray.objective import completion_logps
from bco_ray.schema import PROMPTS, REFERENCE, Record
from bco_ray.scoring.parts import Caches, PrepareStage, Workplace
from bco_ray.scoring.reference import ReferenceModel, ReferenceScorer, project
from bco_ray.scoring.tokens import Tokenizing
from bco_ray.testing.records import settled

Make = Callable[..., Record]
PART = {"file": "part-00000-0000.parquet"}


@pytest.fixture
def forwards(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Rows per batch that went through the model."""
    sizes: list[int] = []
    score = Policy.score

    def counting(policy: Policy, pack: Pack) -> tuple[torch.Tensor, torch.Tensor]:
        sizes.append(pack.rows)
        return score(policy, pack)

    monkeypatch.setattr(Policy, "score", counting)
    return sizes


class Bench:
    """One part, prepared and scored in this process."""

    def __init__(self, model: Path, directory: Path, *, job: str = "job", max_tokens: int = 200) -> None:
        self.records = directory / f"records-{job}"
        self.work = Workplace(directory / f"scored-{job}", job)
        self.caches = Caches(directory / "cache" / "logps", directory / "cache" / "embeddings")
        self.tokenizing = Tokenizing(str(model), max_length=60, validation=0.5, with_text=False)
        self.scorer = ReferenceScorer(
            ReferenceModel(str(model), "float32", "cpu", max_tokens, threads=1), self.caches, self.work
        )

    def prepare(self, *records: Record) -> bool:
        self.records.mkdir(exist_ok=True)
        pq.write_table(settled(records).sort_by("prompt_hash"), self.records / PART["file"])
        item = PrepareStage(self.records, self.tokenizing, self.caches, self.work)(PART)
        assert item["rows"] == len(records)
        return bool(item["pending"])

    def run(self, *records: Record) -> pa.Table:
        if self.prepare(*records):
            self.scorer(PART)
        return pq.read_table(self.work.reference / PART["file"])

    @property
    def prompts(self) -> pa.Table:
        return pq.read_table(self.work.reference / "prompts-00000-0000.parquet")


def test_rows_hold_the_models_own_log_probabilities(model: Path, tmp_path: Path, record: Make) -> None:
    bench = Bench(model, tmp_path, max_tokens=64)
    records = [record(f"Question {n}?" * (1 + n % 3), "Yes. " * (1 + n % 4)) for n in range(9)]
    rows = bench.run(*records)
    assert rows.schema == REFERENCE
    assert sorted(rows["position"].to_pylist()) == list(range(9))
    assert rows["prompt_hash"].to_pylist() == sorted(rows["prompt_hash"].to_pylist())
    lm = AutoModelForCausalLM.from_pretrained(model)
    for row in rows.to_pylist():
        ids_BT, mask_BT = torch.tensor([row["input_ids"]]), torch.tensor([row["completion_mask"]])
        with torch.no_grad():
            expected = completion_logps(lm(ids_BT).logits, ids_BT, mask_BT).item()
        assert row["reference_logp"] == pytest.approx(expected, rel=1e-5)
    mark = bench.work.done(PART["file"])
    assert mark is not None
    assert (mark.facts.rows, mark.computed_rows, mark.cached_rows) == (9, 9, 0)
    assert not bench.work.tokens(PART["file"]).exists()


def test_prompts_are_listed_once_with_their_votes(model: Path, tmp_path: Path, record: Make) -> None:
    bench = Bench(model, tmp_path)
    bench.run(record(answer="a"), record(answer="b", label=False), record("Ho", "c"), record(answer="d"))
    assert bench.prompts.schema == PROMPTS
    by_votes = {(row["chosen"], row["rejected"]): row for row in bench.prompts.to_pylist()}
    assert by_votes.keys() == {(2, 1), (1, 0)}
    ids = settled([record()])["prompt_hash"].to_pylist()
    assert by_votes[(2, 1)]["prompt_hash"] == ids[0]
    hidden_1TD = _states(model, bench, ids[0])
    embedding_D = np.frombuffer(by_votes[(2, 1)]["embedding"], "<f4")
    np.testing.assert_allclose(embedding_D, hidden_1TD.mean(1)[0], atol=1e-5)


def _states(model: Path, bench: Bench, hashed: int) -> np.ndarray:
    """Of the prompt's tokens."""
    rows = pq.read_table(bench.work.reference / PART["file"]).to_pylist()
    row = next(row for row in rows if row["prompt_hash"] == hashed)
    ids = row["input_ids"][: row["completion_mask"].index(True)]
    lm = AutoModelForCausalLM.from_pretrained(model)
    with torch.no_grad():
        states: np.ndarray = lm.base_model(torch.tensor([ids])).last_hidden_state.numpy()
    return states


def test_the_same_tokens_are_run_once(model: Path, tmp_path: Path, record: Make, forwards: list[int]) -> None:
    rows = Bench(model, tmp_path).run(record(user="a"), record(user="b", label=False), record("Ho"))
    assert sum(forwards) == 2
    same = {row["reference_logp"] for row in rows.to_pylist() if row["user"]}
    assert len(same) == 1


def test_another_job_on_the_same_log_loads_no_model(model: Path, tmp_path: Path, record: Make) -> None:
    records = [record(f"q{n}") for n in range(5)]
    first = Bench(model, tmp_path).run(*records)
    other = Bench(model, tmp_path, job="other")
    assert not other.prepare(*records)
    assert pq.read_table(other.work.reference / PART["file"]).equals(first)
    mark = other.work.done(PART["file"])
    assert mark is not None
    assert (mark.computed_rows, mark.cached_rows) == (0, 5)


def test_only_new_rows_are_run(model: Path, tmp_path: Path, record: Make, forwards: list[int]) -> None:
    old = [record(f"q{n}") for n in range(5)]
    Bench(model, tmp_path).run(*old)
    forwards.clear()
    bench = Bench(model, tmp_path, job="other")
    rows = bench.run(*old, record("new"), record("q0", "another answer"))
    assert (sum(forwards), rows.num_rows, bench.prompts.num_rows) == (2, 7, 6)
    caches = [list(path.iterdir()) for path in (bench.caches.logps, bench.caches.embeddings)]
    assert [sum(pq.read_metadata(f).num_rows for f in found) for found in caches] == [7, 6]


def test_no_model_is_loaded_before_there_is_something_to_compute(model: Path, tmp_path: Path, record: Make) -> None:
    bench, other = Bench(model, tmp_path), Bench(model, tmp_path, job="other")
    assert bench.prepare(record())
    other.run(record())
    bench.scorer(PART)
    assert "policy" not in vars(bench.scorer)
    assert bench.work.done(PART["file"]) is not None
    assert bench.scorer(PART) == PART  # a task that Ray tries again


def test_rows_the_model_cannot_judge_are_refused_and_tried_again(
    model: Path, tmp_path: Path, record: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    score = Policy.score

    def spoiled(policy: Policy, *batch: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        logps_B, embedding_BD = score(policy, *batch)
        return logps_B.clone().index_fill(0, torch.tensor([1]), float("nan")), embedding_BD

    records = [record(f"q{n}") for n in range(4)]
    with monkeypatch.context() as patch:
        patch.setattr(Policy, "score", spoiled)
        bench = Bench(model, tmp_path)
        assert bench.run(*records).num_rows == bench.prompts.num_rows == 3
    tally = bench.work.referred.tally()
    assert (tally.read, tally.drops) == (4, {"non_finite_reference": 1})
    assert Bench(model, tmp_path, job="other").run(*records).num_rows == 4


def test_a_part_of_which_nothing_is_left_is_finished_too(model: Path, tmp_path: Path, record: Make) -> None:
    bench = Bench(model, tmp_path)
    assert not bench.prepare(record("long " * 50))
    mark = bench.work.done(PART["file"])
    assert mark is not None
    assert mark.facts.rows == bench.prompts.num_rows == 0
    assert bench.work.tokenized.tally().drops == {"too_long": 1}


def test_a_part_counts_only_whole_and_for_its_own_job(model: Path, tmp_path: Path, record: Make) -> None:
    bench = Bench(model, tmp_path)
    bench.run(record())
    assert bench.work.done(PART["file"]) is not None
    assert Workplace(bench.work.directory, "another").done(PART["file"]) is None
    shard = bench.work.reference / PART["file"]
    shard.write_bytes(shard.read_bytes()[:-1])
    assert bench.work.done(PART["file"]) is None
    shard.with_suffix(".json").write_text("{")
    assert bench.work.done(PART["file"]) is None


def test_an_embedding_model_reads_each_new_prompt_once(model: Path, tmp_path: Path, record: Make) -> None:
    read: list[str] = []

    class Fake:
        def embed(self, texts: list[str], *, max_tokens: int) -> torch.Tensor:
            read.extend(texts)
            return torch.tensor([[float(len(text))] for text in texts])

    bench = Bench(model, tmp_path)
    bench.tokenizing = Tokenizing(str(model), max_length=60, validation=0.5, with_text=True)
    bench.scorer = ReferenceScorer(
        ReferenceModel(str(model), "float32", "cpu", 200, 1, embedding="elsewhere"), bench.caches, bench.work
    )
    vars(bench.scorer)["embedder"] = Fake()
    bench.run(record("one"), record("one", "again"), record("three"))
    assert sorted(read) == ["one", "three"]
    numbers = [np.frombuffer(row, "<f4").tolist() for row in bench.prompts["embedding"].to_pylist()]
    assert sorted(numbers) == [[3.0], [5.0]]


def test_wide_embeddings_are_projected_and_distances_survive() -> None:
    points = torch.randn(6, 2000, generator=torch.Generator().manual_seed(1))
    projected = project(points, width=1000)
    assert projected.shape == (6, 1000)
    ratio = torch.cdist(projected, projected)[0, 1:] / torch.cdist(points, points)[0, 1:]
    assert ((ratio - 1).abs() < 0.15).all()
    assert project(points, width=4000) is points
