"""TRL's side in a process of its own, in TRL's own environment: `python training_trl.py ORDER.json`.

Its defaults are kept where the variant does not say otherwise. Two things are wrapped, in the first step only, which
is not measured: the loss of each micro-batch and the log-probability of each row.
"""

from __future__ import annotations

import json
import sys
import zlib
from pathlib import Path
from typing import Any

import datasets
import torch
import transformers
import trl
from training_meter import Meter, read_order, write_result


class First:
    """Losses and log-probabilities of the first window, in the order of its rows."""

    def __init__(self) -> None:
        self.open = True
        self.losses: list[float] = []
        self.logps: list[float] = []


class StepMarks(transformers.TrainerCallback):
    """Tells the meter."""

    def __init__(self, meter: Meter, first: First) -> None:
        self.meter, self.first = meter, first

    def on_step_end(self, *_: Any, **__: Any) -> None:
        """After the optimizer."""
        self.first.open = False
        self.meter.step()


def bco_classes() -> tuple[Any, Any]:
    """TRL 1.13.0."""
    from trl.experimental.bco import BCOConfig, BCOTrainer

    return BCOConfig, BCOTrainer


def kto_classes() -> tuple[Any, Any]:
    """TRL 1.16.0."""
    from trl import KTOConfig, KTOTrainer

    return KTOConfig, KTOTrainer


def arguments(order: dict[str, Any], config: Any) -> Any:
    """The variant's own settings, and what both sides must share."""
    variant, task = order["variant"], order["task"]
    micro_batch = variant["micro_batch"]
    return config(
        output_dir=f"{order['scratch']}/trl",
        per_device_train_batch_size=micro_batch,
        gradient_accumulation_steps=task["window_rows"] // micro_batch,
        precompute_ref_log_probs=variant["precompute"],
        gradient_checkpointing=variant["gradient_checkpointing"],
        max_length=max(1024, task["longest"] + 2),
        max_steps=order["steps"],
        learning_rate=order["learning_rate"],
        lr_scheduler_type="constant",
        weight_decay=0.0,
        max_grad_norm=1.0,
        beta=order["beta"],
        bf16=order["precision"] == "bf16",
        use_cpu=order["device"] == "cpu",
        report_to=[],
        save_strategy="no",
        disable_tqdm=True,
        seed=0,
    )


def watch_bco(trainer: Any, first: First) -> None:
    """The policy's forward is the one with gradients."""
    forward = trainer.forward

    def watched(model: Any, batch: dict[str, Any]) -> Any:
        out = forward(model, batch)
        if first.open and torch.is_grad_enabled():
            by_label = {True: iter(out[0].tolist()), False: iter(out[1].tolist())}
            first.logps += [next(by_label[label]) for label in batch["label"]]
        return out

    trainer.forward = watched


def watch_kto(trainer: Any, first: First) -> None:
    """KTO's forwards for its KL term are without gradients too."""

    def hook(_: Any, __: Any, out: Any) -> None:
        if first.open and torch.is_grad_enabled():
            first.logps += out.log_probs.detach().float().sum(-1).tolist()

    trainer.model.register_forward_hook(hook)


def watch_loss(trainer: Any, first: First) -> None:
    """Of each micro-batch, before it is divided by their number."""
    compute_loss = trainer.compute_loss

    def watched(*args: Any, **kwargs: Any) -> Any:
        loss = compute_loss(*args, **kwargs)
        if first.open:
            first.losses.append(float(loss.detach()))
        return loss

    trainer.compute_loss = watched


def tokens_of(trainer: Any, rows: int) -> list[dict[str, int]]:
    """What TRL made of the first rows: length, completion tokens, and a checksum of the ids."""
    found = []
    for row in trainer.train_dataset.select(range(rows)):
        if "completion_labels" in row:
            ids, scored = row["completion_input_ids"], sum(token != -100 for token in row["completion_labels"])
        else:
            ids, scored = row["prompt_ids"] + row["completion_ids"], len(row["completion_ids"])
        found.append({"tokens": len(ids), "scored": scored, "ids": zlib.crc32(json.dumps(ids).encode())})
    return found


def votes(task: dict[str, Any], steps: int) -> datasets.Dataset:
    """The rows of the steps to do, and no more: TRL may run the reference on all it is given."""
    lines = Path(task["rows"]).read_text().splitlines()[: steps * task["window_rows"]]
    return datasets.Dataset.from_list([json.loads(line) for line in lines])


def main(path: str) -> None:
    """Load, train, write the result."""
    order = read_order(path)
    task, bco = order["task"], order["variant"]["loss"] == "bco"
    meter, first = Meter(steps=order["steps"], threads=order["threads"], device=order["device"]), First()
    config, trainer_class = bco_classes() if bco else kto_classes()
    model = transformers.AutoModelForCausalLM.from_pretrained(task["model"], dtype=torch.float32)
    meter.loaded()
    trainer = trainer_class(
        model=model,
        args=arguments(order, config),
        train_dataset=votes(task, order["steps"]),
        processing_class=transformers.AutoTokenizer.from_pretrained(task["model"]),
        callbacks=[StepMarks(meter, first)],
    )
    (watch_bco if bco else watch_kto)(trainer, first)
    watch_loss(trainer, first)
    trainer.train()
    result = meter.figures() | {
        "first_loss": sum(first.losses) / len(first.losses),
        "first_logps": first.logps,
        "first_rows": tokens_of(trainer, task["window_rows"]),
        "versions": {"trl": trl.__version__, "transformers": transformers.__version__, "torch": torch.__version__},
        "optimizer": str(trainer.args.optim),
    }
    write_result(order, result)


if __name__ == "__main__":
    main(sys.argv[1])
