"""One measurement after another, each in a process of its own; what is measured already is not measured again."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import venv
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
ROOT = HERE.parent


@dataclass(frozen=True)
class Variant:
    """One side as it is set up. `trl` None is us."""

    script: str
    trl: str | None = None
    loss: str = "bco"
    micro_batch: int = 0
    precompute: bool = False
    gradient_checkpointing: bool = False
    micro_batch_tokens: int = 0


def trl_variant(trl: str, loss: str, micro_batch: int, **changed: bool) -> Variant:
    """A TRL trainer; untouched it computes the reference inline and checkpoints gradients."""
    settings = {"precompute": False, "gradient_checkpointing": True} | changed
    return Variant("training_trl.py", trl, loss, micro_batch, **settings)


BY_HAND = {"precompute": True, "gradient_checkpointing": False}

VARIANTS = {
    "ours": Variant("training_ours.py"),
    "bco-default": trl_variant("1.13.0", "bco", 8),
    "bco-micro-4": trl_variant("1.13.0", "bco", 4),
    "bco-micro-1": trl_variant("1.13.0", "bco", 1, gradient_checkpointing=False),
    "bco-tuned": trl_variant("1.13.0", "bco", 1, **BY_HAND),
    "kto-default": trl_variant("1.16.0", "kto", 8),
    "kto-tuned": trl_variant("1.16.0", "kto", 2, **BY_HAND),
    "script": Variant("training_deepspeed.py"),
    "ray": Variant("training_ray.py"),
}
"""KTO refuses micro-batches of one row (its KL term needs two), so two are the least padding it can have."""


@dataclass(frozen=True)
class Bench:
    """What all measurements of a run share."""

    out: Path
    venvs: Path
    device: str
    precision: str
    threads: int
    window_rows: int
    median_words: int
    micro_batch_tokens: int
    zero_stage: int = 0
    learning_rate: float = 5e-7
    beta: float = 0.1
    seed: int = 0

    def order(self, **more: Any) -> dict[str, Any]:
        """The settings every process gets."""
        names = ("device", "precision", "threads", "zero_stage", "learning_rate", "beta")
        return {name: getattr(self, name) for name in names} | more

    def task(self, size: str, windows: int, model: Path | None) -> dict[str, Any]:
        """Model, votes and reference of one size, made if missing."""
        amount = f"{self.window_rows}x{windows}-{self.median_words}"
        directory = self.out / "tasks" / f"{size}-{self.precision}-{self.device}-{amount}"
        order = {
            "directory": str(directory), "size": size, "model": str(model or self.out / "models" / size),
            "window_rows": self.window_rows, "windows": windows, "median_words": self.median_words,
            "seed": self.seed, "precision": self.precision, "device": self.device, "code": code_digest(),
        }  # fmt: skip
        path = write_json(self.out / "tasks" / f"{directory.name}.order.json", order)
        run_python(sys.executable, "training_task.py", path, self.threads, self.out)
        task: dict[str, Any] = json.loads((directory / "task.json").read_text())
        return task

    def measure(self, name: str, task: dict[str, Any], steps: int, round_number: int) -> dict[str, Any]:
        """One side, once."""
        variant = VARIANTS[name]
        settings = asdict(variant) | {"micro_batch_tokens": self.micro_batch_tokens}
        place = self.out / "measured" / Path(task["order"]["directory"]).name
        scratch = str(place / f"{name}-{round_number}.scratch")
        order = self.order(variant=settings, task=needed(task), steps=steps, scratch=scratch)
        order |= {} if variant.trl else {"code": task["order"]["code"]}
        python = self.python_of(variant) if variant.trl else sys.executable
        return self._once(python, variant.script, order, place / f"{name}-{round_number}.json")

    def matmul(self, round_number: int) -> dict[str, Any]:
        """The machine's peak, once."""
        path = self.out / "measured" / f"matmul-{self.device}-{self.threads}-{round_number}.json"
        return self._once(sys.executable, "training_matmul.py", self.order(), path)

    def _once(self, python: str, script: str, order: dict[str, Any], result: Path) -> dict[str, Any]:
        order["result"] = str(result)
        asked = result.with_suffix(".order.json")
        if not (result.is_file() and asked.is_file() and json.loads(asked.read_text()) == order):
            result.unlink(missing_ok=True)
            load = os.getloadavg()[0]
            run_python(python, script, write_json(asked, order), self.threads, self.out)
            write_json(result, json.loads(result.read_text()) | {"load_before": round(load, 2)})
        found: dict[str, Any] = json.loads(result.read_text())
        return found

    def python_of(self, variant: Variant) -> str:
        """The interpreter of TRL's environment, which is made if it is missing."""
        directory = self.venvs / f"trl-{variant.trl}"
        python = directory / "bin" / "python"
        if not python.exists():
            venv.create(directory, with_pip=True)
            requirements = HERE / f"requirements-trl-{variant.trl}.txt"
            try:
                subprocess.run([python, "-m", "pip", "install", "-q", "-r", requirements], check=True)
            except BaseException:
                shutil.rmtree(directory)  # half an environment would be taken for a whole one
                raise
        return str(python)


def needed(task: dict[str, Any]) -> dict[str, Any]:
    """What a side must know of the task. Without our code's digest: TRL's side is not measured again for that."""
    made_from = {name: value for name, value in task["order"].items() if name != "code"}
    return {name: task[name] for name in ("model", "rows", "scored", "window_rows", "longest")} | {"order": made_from}


def run_python(python: str, script: str, order: Path, threads: int, out: Path) -> None:
    """A script of this folder on an order. Raises RuntimeError with its last words if it fails."""
    command = [python, str(HERE / script), str(order)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment(threads, out))
    if done.returncode:
        raise RuntimeError(f"{script} {order.name} exited with {done.returncode}:\n{done.stderr[-4000:]}")


def environment(threads: int, out: Path) -> dict[str, str]:
    """Pinned threads, no network, no cache of an earlier run."""
    pinned = {name: str(threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_CACHE": str(out / "datasets"), "TOKENIZERS_PARALLELISM": "false"}
    return {**os.environ, **pinned, **offline, "PYTHONPATH": str(ROOT)}


def code_digest() -> str:
    """Changes when our code does: then our side, and what it prepared, is measured again."""
    digest = hashlib.sha256()
    for path in sorted([*(ROOT / "bco_ray").rglob("*.py"), *HERE.glob("training*.py")]):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def write_json(path: Path, value: Any) -> Path:
    """Creates the folders above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))
    return path
