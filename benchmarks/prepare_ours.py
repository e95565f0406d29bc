"""Our preparation of a log up to tokens: read, settle, template, tokenize. `python prepare_ours.py LOG MODEL OUT`."""

from __future__ import annotations

import sys
from pathlib import Path

from bco_ray.config.environment import prepare_environment

prepare_environment()

import ray.data  # noqa: E402 - the environment comes first

from bco_ray.config import DataSpec  # noqa: E402
from bco_ray.pipeline.cluster import cluster  # noqa: E402
from bco_ray.pipeline.log import read_log, resolve_log  # noqa: E402
from bco_ray.scoring.parts import Caches, PrepareStage, Workplace  # noqa: E402
from bco_ray.scoring.tokens import Tokenizing  # noqa: E402
from bco_ray.telemetry import Phases  # noqa: E402


def main(log: str, model: str, out: str) -> None:
    storage = Path(out)
    resolved = resolve_log(DataSpec(feedback=[log], format="canonical"), storage)
    with cluster(workers=2, object_store_bytes=500_000_000):
        manifest = read_log(resolved, Phases())
        tokenizing = Tokenizing(model, max_length=1024, validation=0.05, with_text=False)
        caches = Caches(storage / "logps", storage / "prompts")
        stage = PrepareStage(resolved.directory, tokenizing, caches, Workplace(storage / "scored", "benchmark"))
        items = [{"file": part.file} for part in manifest.parts if part.rows]
        rows = sum(
            row["rows"] for row in ray.data.from_items(items, override_num_blocks=len(items)).map(stage).iter_rows()
        )
    sys.stderr.write(f"{rows} rows tokenized\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
