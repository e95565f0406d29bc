"""TRL's own losses on given numbers: the yardstick of tests/objective/test_trl_vectors.py.

    python -m venv /tmp/trl116 && /tmp/trl116/bin/pip install trl==1.16.0                 # KTO, APO-zero, DPO, SFT
    python -m venv /tmp/trl113 && /tmp/trl113/bin/pip install trl==1.13.0 scikit-learn joblib    # the last with BCO
    /tmp/trl116/bin/python benchmarks/trl_vectors.py tests/data/trl-vectors.json
    /tmp/trl113/bin/python benchmarks/trl_vectors.py tests/data/trl-vectors.json

Each run replaces the groups that its TRL has. The trainers' own methods run, on a namespace in place of a trainer and
a "model" that looks its log-probabilities up; only `sft` has a network, a random one of two layers. float64, seeded.
"""

from __future__ import annotations

import importlib.metadata
import json
import random
import re
import sys
import tempfile
from collections import defaultdict
from pathlib import Path
from types import SimpleNamespace as Namespace
from typing import Any

import torch
from torch import Tensor

TRL = importlib.metadata.version("trl")
BETA = 0.1
Case = dict[str, Any]


def drawn(seed: int, count: int, *, mean: float = -40.0, spread: float = 8.0) -> list[float]:
    """Log-probabilities of `count` sequences, nats, to four decimals."""
    rng = random.Random(seed)
    return [round(rng.gauss(mean, spread), 4) for _ in range(count)]


def shifted(logps: list[float], by: list[float]) -> list[float]:
    return [round(a + b, 4) for a, b in zip(logps, by, strict=True)]


def rows_case(seed: int, labels: list[int], *, spread: float = 6.0, drift: float = 0.0) -> Case:
    """Rows whose log-ratios are about N(drift, spread^2)."""
    reference = drawn(seed, len(labels))
    policy = shifted(reference, drawn(seed + 1, len(labels), mean=drift, spread=spread))
    return {"beta": BETA, "labels": labels, "policy_logps": policy, "ref_logps": reference}


def with_kl(case: Case, seed: int, *, drift: float) -> Case:
    """The mismatched completions KTO takes its reference point from."""
    reference = drawn(seed, len(case["labels"]))
    policy = shifted(reference, drawn(seed + 1, len(reference), mean=drift, spread=2.0))
    return {**case, "kl_policy_logps": policy, "kl_ref_logps": reference}


def looked_up(table: Tensor) -> Any:
    """A causal model of sequences of two tokens: the second is its row in `table`, and so its log-probability."""

    def forward(*, input_ids: Tensor, **_: Any) -> Namespace:
        log_probs = table[input_ids[:, 1:]]
        zeros = torch.zeros_like(log_probs).detach()
        return Namespace(log_probs=log_probs, entropy=zeros, mean_logits=zeros, is_top1=zeros.bool())

    return forward


def tokens(rows: range) -> dict[str, Tensor]:
    ids = torch.tensor([[0, row] for row in rows])
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "completion_mask": torch.ones_like(ids)}


def alone() -> Namespace:
    """An accelerator of one process."""
    same = lambda x: x  # noqa: E731
    return Namespace(
        device="cpu", gather=same, gather_for_metrics=same, num_processes=1, parallelism_config=None,
        use_distributed=False, is_main_process=True,
    )  # fmt: skip


def trainer(**fields: Any) -> Namespace:
    """What the methods called here read of a trainer."""
    return Namespace(
        **fields, accelerator=alone(), model=Namespace(training=True), aux_loss_enabled=False, beta=BETA, _tp_size=1,
        _metrics={"train": defaultdict(list)}, _total_train_tokens=0, precompute_ref_logps=True,
    )  # fmt: skip


def kto(loss_type: str, case: Case) -> Case:
    """KTOTrainer._compute_loss: the mean over the batch, its gradient, and each row's loss from a batch of its own."""
    from trl import KTOTrainer

    has_kl, count = "kl_ref_logps" in case, len(case["labels"])
    policy = torch.tensor(case["policy_logps"] + case.get("kl_policy_logps", []), dtype=torch.float64)
    policy.requires_grad_()
    gains = {"desirable_weight": case["desirable_weight"], "undesirable_weight": case["undesirable_weight"]}

    def loss_of(rows: range) -> tuple[Tensor, Namespace]:
        batch = {**tokens(rows), "label": torch.tensor(case["labels"][rows.start : rows.stop], dtype=torch.bool)}
        batch["ref_logps"] = torch.tensor(case["ref_logps"][rows.start : rows.stop], dtype=torch.float64)
        if has_kl:
            batch |= {f"KL_{name}": value for name, value in tokens(range(count, 2 * count)).items()}
            batch["ref_KL_logps"] = torch.tensor(case["kl_ref_logps"], dtype=torch.float64)
        self = trainer(loss_type=loss_type, calculate_KL=has_kl, **gains)
        self._compute_kl_logps = lambda model, batch: KTOTrainer._compute_kl_logps(self, model, batch)
        return KTOTrainer._compute_loss(self, looked_up(policy), batch, False), self

    loss, self = loss_of(range(count))
    (grad,) = torch.autograd.grad(loss, policy)
    metrics = self._metrics["train"]
    return {
        "row_losses": [loss_of(range(row, row + 1))[0].item() for row in range(count)],
        "loss": loss.item(),
        "grad": grad[:count].tolist(),
        "kl": metrics["kl"][0],
        "mean_chosen_reward": metrics["rewards/chosen"][0],
        "mean_rejected_reward": metrics["rewards/rejected"][0],
    }


def pairs(loss_type: str, case: Case) -> Case:
    """DPOTrainer._compute_loss on P pairs; rows 0..P-1 of the batch are chosen, the others rejected."""
    from trl import DPOTrainer

    count = len(case["policy_chosen_logps"])
    policy = torch.tensor(case["policy_chosen_logps"] + case["policy_rejected_logps"], dtype=torch.float64)
    policy.requires_grad_()

    def loss_of(rows: range) -> tuple[Tensor, Namespace]:
        chosen, rejected = tokens(rows), tokens(range(count + rows.start, count + rows.stop))
        inputs = {name: torch.cat([chosen[name], rejected[name]]) for name in chosen}
        for side in ("chosen", "rejected"):
            reference = case[f"ref_{side}_logps"][rows.start : rows.stop]
            inputs[f"ref_{side}_logps"] = torch.tensor(reference, dtype=torch.float64)
        self = trainer(loss_types=[loss_type], loss_weights=[1.0], ld_alpha=None, use_weighting=False,
                       f_divergence_type="reverse_kl", label_smoothing=0.0)  # fmt: skip
        return DPOTrainer._compute_loss(self, looked_up(policy), inputs, False), self

    loss, self = loss_of(range(count))
    (grad,) = torch.autograd.grad(loss, policy)
    return {
        "pair_losses": [loss_of(range(pair, pair + 1))[0].item() for pair in range(count)],
        "loss": loss.item(),
        "grad_chosen": grad[:count].tolist(),
        "grad_rejected": grad[count:].tolist(),
        "mean_margin": self._metrics["train"]["rewards/margins"][0],
    }


def sft(seed: int) -> tuple[Case, Case]:
    """SFTTrainer.compute_loss with TRL's fused head on a random network: the mean over completion tokens."""
    from transformers import LlamaConfig, LlamaForCausalLM
    from trl import SFTTrainer
    from trl.trainer.utils import add_fused_lm_head

    torch.manual_seed(seed)
    shape = LlamaConfig(vocab_size=13, hidden_size=4, intermediate_size=8, num_hidden_layers=2, num_attention_heads=2)
    model = LlamaForCausalLM(shape).double()
    ids = torch.randint(13, (3, 7))
    mask = torch.tensor([[0, 0, 1, 1, 1, 1, 0], [0, 1, 1, 0, 0, 0, 0], [0, 0, 0, 1, 1, 1, 1]])
    states = model.model(ids).last_hidden_state
    add_fused_lm_head(model, outputs=("log_probs", "entropy", "is_top1"))
    labels = ids.masked_fill(mask == 0, -100)
    args = Namespace(loss_type="nll", average_tokens_across_devices=True)
    self = trainer(args=args, compute_loss_func=None, label_smoother=None, get_tp_size=lambda: 1)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}
    loss = SFTTrainer.compute_loss(self, model, inputs)
    head = model.lm_head.weight
    (grad,) = torch.autograd.grad(loss, head)
    given = {"input_ids": ids, "completion_mask": mask, "hidden_states": states, "head": head}
    return {name: tensor.tolist() for name, tensor in given.items()}, {"loss": loss.item(), "head_grad": grad.tolist()}


def bco(case: Case) -> list[Case]:
    """BCOTrainer.bco_loss on a case's batches one after the other, the running moments kept between them."""
    from trl.experimental.bco.bco_trainer import BCOTrainer, RunningMoments

    self = trainer(running=RunningMoments(accelerator=alone()), match_underlying_distribution="p_up" in case,
                   args=Namespace(min_density_ratio=0.5, max_density_ratio=10.0))  # fmt: skip
    self._get_chosen_prob = lambda _: torch.tensor(case["p_up"], dtype=torch.float64)
    self._get_udm_weight = lambda embeddings: BCOTrainer._get_udm_weight(self, embeddings)
    return [_bco_batch(self, BCOTrainer.bco_loss, batch) for batch in case["batches"]]


def _bco_batch(self: Namespace, bco_loss: Any, batch: Case) -> Case:
    policy = torch.tensor(batch["policy_logps"], dtype=torch.float64, requires_grad=True)
    reference, chosen = torch.tensor(batch["ref_logps"], dtype=torch.float64), torch.tensor(batch["labels"]) == 1
    columns = (policy[chosen], policy[~chosen], reference[chosen], reference[~chosen])
    losses, _, _, delta = bco_loss(self, *columns, chosen_embeddings=None, rejected_embeddings=None)
    loss = losses.nanmean()
    (grad,) = torch.autograd.grad(loss, policy)
    row_losses = torch.empty_like(losses)
    row_losses[chosen], row_losses[~chosen] = losses[: chosen.sum()], losses[chosen.sum() :]
    with tempfile.TemporaryDirectory() as folder:
        self.running.save_to_json(f"{folder}/running.json")
        text = Path(f"{folder}/running.json").read_text()
    return {"row_losses": row_losses.tolist(), "loss": loss.item(), "grad": grad.tolist(), "delta": delta.item(),
            "running_json": text}  # fmt: skip


def unpaired_cases() -> dict[str, Case]:
    def case(seed: int, labels: list[int], gain: float, **more: float) -> Case:
        return rows_case(seed, labels, **more) | {"desirable_weight": gain, "undesirable_weight": 1.0}

    return {
        "balanced": case(1, [1, 0, 0, 1, 1, 0], 1.0),
        "unbalanced": case(11, [1, 1, 0, 1, 1, 1, 1, 1], 1.0, drift=-5.0),
        "weighted": case(21, [0, 1, 0, 0, 1, 0, 0, 1], 1.58, drift=-5.0),
        "extreme": case(31, [1, 0, 1, 0, 0], 1.58, spread=400.0),
    }


def kto_cases() -> dict[str, Case]:
    cases = unpaired_cases()
    named = {f"{name}, z above 0": with_kl(case, 41, drift=4.0) for name, case in cases.items()}
    return named | {f"{name}, z clamped": with_kl(case, 51, drift=-4.0) for name, case in cases.items()}


def pair_cases() -> dict[str, Case]:
    def case(seed: int, spread: float) -> Case:
        sides = {"chosen": rows_case(seed, [1] * 5, spread=spread)}
        sides["rejected"] = rows_case(seed + 5, [0] * 5, spread=spread)
        return {"beta": BETA} | {f"{of}_{s}_logps": sides[s][f"{of}_logps"] for of in ("policy", "ref") for s in sides}

    return {"usual": case(61, 8.0), "extreme": case(71, 400.0)}


def bco_cases() -> dict[str, Case]:
    mixed = rows_case(101, [1, 0, 1, 1, 1, 1, 0, 1, 1, 1, 1, 1, 1, 1, 0, 1], drift=-8.0)
    cut = [{k: v if k == "beta" else v[at : at + 4] for k, v in mixed.items()} for at in range(0, 16, 4)]
    stream = [rows_case(200 + 10 * step, [1, 0] * 4, drift=-3.0 * step) for step in range(5)]
    return {
        "one balanced batch": {"batches": [rows_case(81, [1, 0, 0, 1, 1, 0, 1, 0])]},
        "balanced batches in a row": {"batches": stream},
        "one unbalanced batch": {"batches": [mixed]},
        "the unbalanced batch in four": {"batches": cut},
        "one row, then seven": {"batches": [rows_case(91, [1]), rows_case(93, [1, 0, 0, 1, 0, 1, 0])]},
        "matched": {"batches": [rows_case(81, [1, 0, 0, 1, 1, 0, 1, 0])], "p_up": [0.02, 0.4, 0.7, 0.99]},
    }


def groups() -> dict[str, list[Case]]:
    if TRL.startswith("1.13."):
        return {"bco": [{"name": n, "inputs": case, "outputs": bco(case)} for n, case in bco_cases().items()]}
    given, found = sft(7)
    made: dict[str, list[Case]] = {"sft": [{"name": "two layers", "inputs": given, "outputs": found}]}
    for group, loss_type, run, cases in (
        ("kto", "kto", kto, kto_cases()), ("apo_zero_unpaired", "apo_zero_unpaired", kto, unpaired_cases()),
        ("dpo", "sigmoid", pairs, pair_cases()), ("bco_pair", "bco_pair", pairs, pair_cases()),
    ):  # fmt: skip
        made[group] = [{"name": n, "inputs": case, "outputs": run(loss_type, case)} for n, case in cases.items()]
    return made


def main(path: str) -> None:
    out = Path(path)
    known: dict[str, Any] = json.loads(out.read_text()) if out.is_file() else {}
    made = {name: {"trl": TRL, "cases": cases} for name, cases in groups().items()}
    text = json.dumps(known | made, indent=1, sort_keys=True, allow_nan=False)
    out.write_text(re.sub(r"\[([^][{}]*)\]", lambda numbers: f"[{' '.join(numbers[1].split())}]", text) + "\n")
    print(f"{out}: {', '.join(made)} from TRL {TRL}, torch {torch.__version__}")  # noqa: T201


if __name__ == "__main__":
    main(sys.argv[1])
