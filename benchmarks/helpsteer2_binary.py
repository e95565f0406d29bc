"""The votes of BCO's table 1: HelpSteer2's rows on those prompts whose two responses differ in helpfulness.

    python benchmarks/helpsteer2_binary.py helpsteer2/train.jsonl.gz helpsteer2-binary.jsonl

The paper drops ties and keeps only the prompts that its DPO had: 14,442 votes, 38.65 % of them thumbs-up (helpfulness
4). What this prints is to be compared with that. Rows are written as they were read; the importer sets the threshold.
"""

from __future__ import annotations

import gzip
import json
import sys
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

Row = dict[str, Any]


def untied(rows: Iterable[Row]) -> list[Row]:
    """Rows on prompts of which not all responses are equally helpful, in their order."""
    rows = list(rows)
    levels: dict[str, set[float]] = defaultdict(set)
    for row in rows:
        levels[row["prompt"]].add(row["helpfulness"])
    return [row for row in rows if len(levels[row["prompt"]]) > 1]


def main(source: str, target: str) -> None:
    """JSON lines in (gzip by its name), JSON lines out."""
    content = Path(source).read_bytes()
    lines = (gzip.decompress(content) if source.endswith(".gz") else content).decode().splitlines()
    kept = untied(json.loads(line) for line in lines if line)
    Path(target).write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in kept), encoding="utf-8")
    ups = sum(row["helpfulness"] == 4 for row in kept)
    sys.stdout.write(f"{len(lines)} rows read, {len(kept)} kept, {ups / max(1, len(kept)):.2%} thumbs-up\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
