"""TRL's preparation of a log: what BCOTrainer does before its first step. `python prepare_trl.py LOG MODEL OUT`."""

from __future__ import annotations

import sys

import datasets
from transformers import AutoModelForCausalLM, AutoTokenizer


def main(log: str, model: str, out: str) -> None:
    from trl.experimental.bco import BCOConfig, BCOTrainer

    with open(log) as lines, open(f"{log}.trl", "w") as clean:  # noqa: PTH123 - TRL refuses the torn rows
        clean.writelines(line for line in lines if line.endswith("}\n"))
    rows = datasets.load_dataset("json", data_files=f"{log}.trl", split="train", cache_dir=out)
    rows = rows.map(
        lambda row: {
            "prompt": [{"role": "user", "content": row["prompt"]}],
            "completion": [{"role": "assistant", "content": row["completion"]}],
        },
        remove_columns=["response_id", "user", "model", "updated_at"],
    )
    config = BCOConfig(output_dir=out, report_to=[], use_cpu=True, max_length=1024)
    BCOTrainer(
        model=AutoModelForCausalLM.from_pretrained(model),
        ref_model=AutoModelForCausalLM.from_pretrained(model),
        args=config,
        train_dataset=rows,
        processing_class=AutoTokenizer.from_pretrained(model),
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
