"""What an estimate says against what a run does: counts, steps, bytes, and the pace of an earlier run."""

from __future__ import annotations

import gzip
import json
import random
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import transformers

from bco_ray.config import dump_spec, parse_spec
from bco_ray.errors import DataError, ModelError
from bco_ray.models import loading
from bco_ray.models.checkpointing import checkpoint_activations
from bco_ray.models.packing import lay_out
from bco_ray.models.policy import Policy
from bco_ray.models.sizes import ModelSize
from bco_ray.pipeline import sampling
from bco_ray.pipeline.estimate import Estimate, estimate
from bco_ray.pipeline.memory import Layout, activations
from bco_ray.pipeline.pace import Pace, tokens_per_worker_second
from bco_ray.pipeline.resolve import resolve
from bco_ray.pipeline.run import score_job
from bco_ray.storage import files
from bco_ray.storage.run_journal import RunJournal
from bco_ray.telemetry import Phases
from bco_ray.testing.tiny import write_tiny_model
from bco_ray.training.assembling import _plan, _reader
from bco_ray.training.engine import TorchEngine
from bco_ray.training.gang import SoloGang
from bco_ray.training.metrics import MetricsLog
from bco_ray.training.step import Objective

SMALL: dict[str, Any] = {"num_workers": 1, "max_length": 64, "rows_per_step": 16, "deepspeed": {"zero_stage": 0}}

Of = Callable[..., Estimate]


def vote(n: int, *, words: int = 3) -> dict[str, Any]:
    return {"prompt": f"question {n // 2}?", "completion": "yes " * words, "label": n % 2 == 0, "user": f"u{n}"}


def write_log(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def spec_of(tmp_path: Path) -> Any:
    model = write_tiny_model(tmp_path / "base")

    def made(*logs: Path, training: dict[str, Any] | None = None, **sections: Any) -> Any:
        values = {
            "name": "bot", "model": {"base": str(model)}, "data": {"feedback": [str(log) for log in logs]},
            "training": {**SMALL, **(training or {})}, "output": {"storage": str(tmp_path / "store")}, **sections,
        }  # fmt: skip
        return parse_spec(values, where="test")

    return made


@pytest.fixture
def estimated(spec_of: Any) -> Of:
    def reckon(*logs: Path, pace: Pace | None = None, **more: Any) -> Estimate:
        return estimate(spec_of(*logs, **more), pace=pace)

    return reckon


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return write_log(tmp_path / "log.jsonl", [vote(n) for n in range(64)])


# --- counts ----------------------------------------------------------------------------------------------------------


def test_a_small_log_is_counted_as_a_run_counts_it(spec_of: Any, tmp_path: Path, ray_cluster: None) -> None:
    rows = [vote(n, words=1 + n % 40) for n in range(150)]
    rows += [rows[3], {**rows[5], "label": False}, {**vote(7), "completion": ""}, {**vote(9), "label": None}]
    log = write_log(tmp_path / "log.jsonl", rows)
    for loss, units in (("bco", "rows"), ("sft", "chosen"), ("dpo", "pairs")):
        training = {"num_train_epochs": 3, "num_workers": 1}
        spec = spec_of(log, training=training, objective={"loss": loss}, scoring={"matching": "off", "num_workers": 1})
        found, job = estimate(spec), resolve(spec)
        scored = score_job(job, Phases(quiet=True))  # all losses share one scoring
        setup: Any = _Setup(str(job.scored_directory), loss)
        reader = _reader(setup, scored)
        plan = _plan(setup, reader)
        assert (reader.units, found.exact) == (units, True)
        assert (found.rows, found.usable_rows, found.steps) == (scored.read, scored.kept, plan.total_steps)
        trained = [reader.unit(ref) for window in plan.windows() for ref in window.rows]
        assert found.trained_tokens == sum(len(row.input_ids) for unit in trained for row in unit)


class _Setup:
    """What of a TrainSetup the plan is made from."""

    def __init__(self, scored: str, loss: str) -> None:
        self.scored, self.objective = scored, Objective(0.1, 1, 1, loss)
        self.rows_per_step, self.epochs, self.seed, self.pool_rows, self.offsets = 16, 3, 0, 65536, None


def lines(path: Path, rows: list[dict[str, Any]]) -> Path:
    return write_log(path.with_suffix(".jsonl"), rows)


def packed(path: Path, rows: list[dict[str, Any]]) -> Path:
    path = path.with_suffix(".jsonl.gz")
    path.write_bytes(gzip.compress("".join(json.dumps(row) + "\n" for row in rows).encode()))
    return path


def array(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.with_suffix(".json").write_text(json.dumps(rows))
    return path.with_suffix(".json")


def table(path: Path, rows: list[dict[str, Any]]) -> Path:
    pq.write_table(pa.Table.from_pylist(rows), path.with_suffix(".parquet"))
    return path.with_suffix(".parquet")


def commas(path: Path, rows: list[dict[str, Any]]) -> Path:
    texts = [",".join(rows[0]), *(",".join(str(value) for value in row.values()) for row in rows)]
    path.with_suffix(".csv").write_text("\n".join(texts))
    return path.with_suffix(".csv")


def arrow(path: Path, rows: list[dict[str, Any]]) -> Path:
    made = pa.Table.from_pylist(rows)
    with pa.OSFile(str(path.with_suffix(".arrow")), "wb") as out, pa.ipc.new_stream(out, made.schema) as writer:
        writer.write_table(made)
    return path.with_suffix(".arrow")


@pytest.mark.parametrize(
    ("write", "within"), [(lines, 0.02), (packed, 0.1), (array, 0.05), (table, 0.0), (commas, 0.05), (arrow, 0.35)]
)
@pytest.mark.parametrize("most_bytes", [1 << 24, 40_000])
def test_the_rows_of_a_larger_log_are_told_from_a_sample(
    estimated: Of, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write: Any, within: float, most_bytes: int
) -> None:
    """Counted where all of it was read, reckoned from what a row takes of it elsewhere."""
    rows = [vote(n, words=1 + n % 9) for n in range(3000)]
    monkeypatch.setattr(sampling, "MOST_ROWS", 200)
    monkeypatch.setattr(sampling, "MOST_BYTES", most_bytes)
    found = estimated(write(tmp_path / "log", rows))
    assert not found.exact
    assert found.rows == pytest.approx(3000, rel=within if most_bytes < 1 << 20 else 0)
    assert found.usable_rows == pytest.approx(found.rows, rel=0.01)
    assert found.label_rate == pytest.approx(0.5, abs=0.02)


def test_a_large_file_and_a_small_one_count_for_what_they_are(
    estimated: Of, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    logs = [
        write_log(tmp_path / "long.jsonl", [vote(n, words=20) for n in range(1500)]),
        write_log(tmp_path / "short.jsonl", [vote(n + 9000, words=1) for n in range(100)]),
    ]
    whole = estimated(*logs)
    monkeypatch.setattr(sampling, "MOST_ROWS", 400)
    part = estimated(*logs)
    assert (whole.exact, part.exact) == (True, False)
    assert part.rows == whole.rows == 1600
    assert part.tokens_per_epoch == pytest.approx(whole.tokens_per_epoch, rel=0.05)


def test_of_many_files_some_stand_for_all(estimated: Of, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sampling, "MOST_FILES", 10)
    logs = [write_log(tmp_path / f"{n:02d}.jsonl", [vote(1000 * n + i) for i in range(20)]) for n in range(40)]
    found = estimated(*logs)
    assert not found.exact
    assert found.rows == pytest.approx(800, rel=0.05)


def test_votes_whose_answers_were_not_read_are_not_judged(
    estimated: Of, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    messages = [{"role": "user", "content": "2+2?"}]
    said = [{"index": 0, "message": {"role": "assistant", "content": "4"}, "finish_reason": "stop"}]
    answers = [
        {"id": f"chatcmpl-{n}", "object": "chat.completion", "request": {"messages": messages}, "choices": said}
        for n in range(500)
    ]
    votes = [{"response_id": f"chatcmpl-{n}", "user": f"u{n}", "rating": "thumbs_up"} for n in range(500)]
    random.Random(0).shuffle(votes)
    logs = write_log(tmp_path / "a.jsonl", answers), write_log(tmp_path / "v.jsonl", votes)
    monkeypatch.setattr(sampling, "MOST_ROWS", 600)
    found = estimated(*logs)
    assert (found.rows, found.exact) == (500, False)
    assert any("their answers are further on" in warning for warning in found.warnings)
    assert found.usable_rows == pytest.approx(500, rel=0.01)


# --- what to think of it ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rows", "training", "words"),
    [
        ([vote(2 * n) for n in range(30)], {}, "all usable votes are thumbs-up: training needs both"),
        ([vote(2 * n) for n in range(60)] + [vote(1)], {}, "98.4% of the usable votes are thumbs-up"),
        ([vote(n, words=1 + 99 * (n % 3 > 0)) for n in range(60)], {}, "67% of the votes are longer than"),
        ([vote(n) for n in range(30)] + [{"prompt": "?"}] * 30, {}, "50% of the votes can be used (30 "),
        ([vote(n) for n in range(30)], {"rows_per_step": 64}, "an epoch has 30 rows, and one step takes 64"),
        ([vote(n) for n in range(30)], {"num_workers": [1, 4]}, "training.num_workers is 1 to 4: reckoned with 1"),
        ([vote(n) for n in range(30)], {}, "memory is that of the smallest, 64 tokens"),
    ],
)
def test_it_warns(estimated: Of, tmp_path: Path, rows: Any, training: dict[str, Any], words: str) -> None:
    found = estimated(
        write_log(tmp_path / "log.jsonl", rows),
        training=training,
        data={"feedback": [str(tmp_path / "log.jsonl")], "validation": 0},
    )
    assert [warning for warning in found.warnings if words in warning], found.warnings


def conversation(n: int) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": f"question {n}?"}, {"role": "assistant", "content": "yes yes"}]}


def test_demonstrations_are_all_that_sft_needs(estimated: Of, tmp_path: Path) -> None:
    log = write_log(tmp_path / "log.jsonl", [conversation(n) for n in range(64)])
    sft = {"objective": {"loss": "sft"}, "training": {"max_tokens_per_micro_batch": 256}}
    found = estimated(log, **sft)
    assert (found.usable_rows, found.label_rate, found.warnings) == (64, 1.0, [])
    with pytest.raises(DataError, match="its conversations have no label"):
        estimated(log)
    downs = write_log(tmp_path / "downs.jsonl", [vote(2 * n + 1) for n in range(64)])
    found = estimated(downs, **sft)
    assert found.steps == 0
    assert any("sft trains on thumbs-up alone" in warning for warning in found.warnings)


def test_a_good_log_is_not_warned_of(estimated: Of, log: Path) -> None:
    assert estimated(log, training={"max_tokens_per_micro_batch": 256}).warnings == []


def test_a_log_without_a_usable_vote_has_no_steps(estimated: Of, tmp_path: Path) -> None:
    found = estimated(write_log(tmp_path / "log.jsonl", [{**vote(1), "completion": ""}]))
    assert (found.rows, found.usable_rows, found.steps, found.label_rate) == (1, 0, 0, None)


def test_what_is_wrong_is_said(estimated: Of, spec_of: Any, tmp_path: Path, log: Path) -> None:
    with pytest.raises(DataError, match="no such file"):
        estimated(tmp_path / "none.jsonl")
    (tmp_path / "other").mkdir()
    with pytest.raises(ModelError, match="no model directory"):
        estimated(log, model={"base": str(tmp_path / "other")})
    (tmp_path / "base" / "config.json").write_text('{"model_type": "unheard-of"}')
    with pytest.raises(ModelError, match=r"base: "):
        estimated(log)


# --- memory ----------------------------------------------------------------------------------------------------------


ADAPTER = {"type": "lora", "r": 4}


def stepped(model: Path, adapter: Any, dtype: torch.dtype) -> tuple[Policy, TorchEngine]:
    lora = None if adapter is None else {"r": 4, "alpha": 32, "target_modules": "all-linear"}
    policy = Policy(loading.load_policy(model, lora, dtype=dtype))
    rates = {"learning_rate": 1e-3, "weight_decay": 0.0, "max_grad_norm": 1.0}
    engine = TorchEngine(policy, SoloGang(), schedule=lambda _: 1.0, **rates)
    pack = lay_out([np.arange(3, 43)], [np.arange(40) > 5])
    engine.backward(engine.forward(pack).mean())
    return policy, engine


def bytes_of(tensors: Iterable[torch.Tensor | None]) -> int:
    return sum({t.data_ptr(): t.nbytes for t in tensors if t is not None}.values())


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("adapter", [None, ADAPTER])
def test_state_takes_the_bytes_that_are_told(
    estimated: Of, tmp_path: Path, log: Path, precision: str, adapter: Any
) -> None:
    model = {"base": str(tmp_path / "base"), "adapter": adapter}
    found = estimated(log, training={"precision": precision}, model=model).memory
    policy, engine = stepped(
        tmp_path / "base", adapter, getattr(torch, {"fp32": "float32", "bf16": "bfloat16"}[precision])
    )
    assert found["weights"] == bytes_of(policy.parameters())
    masters = engine._masters
    assert found["gradients"] == bytes_of(master.grad for master in masters)
    engine.step()
    moments = [engine._optimizer.state[master][name] for master in masters for name in ("exp_avg", "exp_avg_sq")]
    own = [master for master in masters if precision == "bf16"]
    assert found["optimizer"] == bytes_of([*moments, *own])
    assert found["total"] == sum(size for item, size in found.items() if item not in ("total", "host"))


CONFIGS: list[dict[str, Any]] = [
    {"model_type": "llama", "num_key_value_heads": 2},
    {"model_type": "qwen3", "head_dim": 16, "num_key_value_heads": 2},
    {"model_type": "gemma2", "head_dim": 8, "num_key_value_heads": 4},
    {"model_type": "gpt2"},
    {"model_type": "opt", "ffn_dim": 128, "word_embed_proj_dim": 32},
]


SIZES = {
    "hidden_size": 32, "intermediate_size": 96, "num_hidden_layers": 6, "num_attention_heads": 4, "vocab_size": 300,
}  # fmt: skip


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config["model_type"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_activations_are_bounded_and_not_by_far(tmp_path: Path, config: dict[str, Any], dtype: torch.dtype) -> None:
    """Against every tensor that autograd keeps in a real forward, weights left out."""
    made = transformers.AutoConfig.for_model(**{**SIZES, **config})
    made.save_pretrained(tmp_path)
    lm = transformers.AutoModelForCausalLM.from_config(made).to(dtype).eval()
    policy, tokens = Policy(lm), 200
    pack = lay_out([np.arange(tokens) % 300], [np.arange(tokens) > 5])
    all_layers = kept_bytes(lambda: policy(pack), policy)
    checkpoint_activations(lm)
    one_at_a_time = kept_bytes(lambda: policy(pack), policy) + all_layers // made.num_hidden_layers
    for checkpointing, kept in ((False, all_layers), (True, one_at_a_time)):
        layout = Layout(1, 0, "none", dtype.itemsize, "none", "cpu", tokens, tokens, checkpointing, {})
        assert kept <= activations(ModelSize.of(tmp_path), layout) < 3.5 * kept


def kept_bytes(forward: Callable[[], Any], policy: Policy) -> int:
    weights = {own.untyped_storage().data_ptr() for own in (*policy.parameters(), *policy.buffers())}
    seen: dict[int, int] = {}
    alive = []

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            seen[storage.data_ptr()] = storage.nbytes()
            alive.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        forward()
    return sum(seen.values())


def test_state_is_shared_out_by_stage(estimated: Of, log: Path) -> None:
    def of(stage: int, **more: Any) -> dict[str, int]:
        return estimated(log, training={"num_workers": 4, "deepspeed": {"zero_stage": stage, **more}}).memory

    none, one, two, three = (of(stage) for stage in range(4))
    assert one["optimizer"] * 4 == pytest.approx(none["optimizer"] * 3 / 2, abs=4)
    assert none["weights"] == two["weights"] == pytest.approx(three["weights"] * 4, abs=4)
    assert one["gradients"] > two["gradients"] == three["gradients"]
    offloaded = of(3, offload="parameters")
    assert (offloaded["weights"], offloaded["optimizer"], two["host"]) == (0, 0, 0)
    assert offloaded["host"] >= three["weights"] + three["optimizer"]


def test_a_frozen_copy_takes_room_beside(estimated: Of, tmp_path: Path, log: Path) -> None:
    assert estimated(log).memory["reference"] == 0
    kto = estimated(log, objective={"loss": "kto"}).memory
    assert kto["reference"] == kto["weights"]
    model = {"base": str(tmp_path / "base"), "adapter": ADAPTER}
    assert estimated(log, objective={"loss": "kto"}, model=model).memory["reference"] == 0


# --- time ------------------------------------------------------------------------------------------------------------


def test_without_an_earlier_training_no_time_is_told(estimated: Of, log: Path) -> None:
    found = estimated(log)
    assert (found.seconds, found.gpu_hours) == (None, None)
    assert found.basis == "no training has been finished here yet on CPUs"


def test_time_follows_from_the_pace(estimated: Of, log: Path) -> None:
    training = {"num_workers": 2, "num_train_epochs": 2, "resources_per_worker": {"GPU": 1}}
    found = estimated(log, pace=Pace(1e6, "a guess"), training=training, scoring={"num_workers": 4})
    trained = 6 * found.parameters * found.trained_tokens / 1e6
    assert found.tokens_per_row is not None
    scored = 2 * found.parameters * found.tokens_per_row * found.usable_rows / 1e6
    assert found.seconds == pytest.approx(trained / 2 + scored / 4)
    assert found.gpu_hours == pytest.approx((trained + scored) / 3600)
    assert found.basis == "a guess"


def finished_run(spec: Any, name: str, model: Path, *, seconds: float, workers: int = 1) -> Path:
    """As a training leaves it."""
    run: Path = Path(spec.output.storage) / "runs" / name
    (run / "model").parent.mkdir(parents=True)
    (run / "model").symlink_to(model)
    files.write_bytes(run / "spec.resolved.yaml", dump_spec(spec).encode())
    RunJournal(run).write("training", step=0, total_steps=2, workers=workers)
    for step in range(2):
        MetricsLog(run / "metrics.jsonl").append({"step": step, "tokens": 1000, "seconds": seconds})
    return run


def test_the_pace_is_that_of_the_run_most_like_it(spec_of: Any, tmp_path: Path, log: Path) -> None:
    near, far = spec_of(log), write_tiny_model(tmp_path / "far", hidden=64)
    on_gpu = spec_of(log, training={"resources_per_worker": {"GPU": 1}})
    finished_run(near, "far", far, seconds=1)
    finished_run(near, "near", tmp_path / "base", seconds=2, workers=2)
    finished_run(on_gpu, "gpu", tmp_path / "base", seconds=0.01)
    (tmp_path / "store" / "runs" / "broken" / "model").mkdir(parents=True)
    found = estimate(near)
    assert found.basis.startswith("an earlier run here: ")
    assert found.seconds is not None
    assert found.seconds == pytest.approx(
        (found.trained_tokens + found.tokens_per_row * found.usable_rows / 3 / 2) / 250
    )
    assert "on a GPU" in estimate(on_gpu).basis


def test_each_step_counts_for_the_workers_that_took_it() -> None:
    rows = [{"step": step, "tokens": 100, "seconds": 1.0} for step in range(4)]
    events: list[dict[str, Any]] = [
        {"event": "training", "step": 0, "workers": 1},
        {"event": "checkpoint", "step": 2},
        {"event": "training", "step": 2, "workers": 3},
    ]
    assert tokens_per_worker_second(rows, events) == 400 / (2 * 1 + 2 * 3)
    assert tokens_per_worker_second([], events) is None


# --- as a process ----------------------------------------------------------------------------------------------------


def process(text: str) -> tuple[int, Any]:
    command = [sys.executable, "-m", "bco_ray.pipeline.estimate"]
    ended = subprocess.run(command, input=text, capture_output=True, text=True, timeout=120, check=False)
    return ended.returncode, json.loads(ended.stdout)


def test_a_process_takes_json_and_gives_json(spec_of: Any, log: Path, tmp_path: Path) -> None:
    spec = spec_of(log)
    assert process(spec.model_dump_json()) == (0, estimate(spec).model_dump())
    code, said = process(spec_of(tmp_path / "none.jsonl").model_dump_json())
    assert (code, said["error"]["code"]) == (2, "data_error")
    assert "no such file" in said["error"]["message"]


# --- real votes ------------------------------------------------------------------------------------------------------


def test_real_votes_are_told_nearly(estimated: Of, shared_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    part = estimated(shared_data / "pandalm_thumbs.jsonl.gz", training={"max_length": 1024})
    monkeypatch.setattr(sampling, "MOST_ROWS", 10**6)
    whole = estimated(shared_data / "pandalm_thumbs.jsonl.gz", training={"max_length": 1024})
    assert (part.exact, whole.exact) == (False, True)
    assert part.rows == whole.rows == 5342
    assert part.usable_rows == pytest.approx(whole.usable_rows, rel=0.05)
    assert part.tokens_per_epoch == pytest.approx(whole.tokens_per_epoch, rel=0.1)
    assert part.label_rate == pytest.approx(whole.label_rate, abs=0.03)
