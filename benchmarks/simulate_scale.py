"""Capacity on paper: the pipeline's stages on 1 to 1,024 workers, 1e6 to 1e10 votes, models of 1B to 70B.

    python benchmarks/simulate_scale.py                              # the tables
    python benchmarks/simulate_scale.py --markdown --picture docs/scale.png
    python benchmarks/simulate_scale.py --json FILE --price 2.5 --mfu 0.45 --rows-per-step 8192

No GPU and no second machine was ever seen by this: costs per row and per step are measured on two CPU cores, what
hardware does is assumed, and both are listed. The same options and seed give the same numbers. `--markdown --write`
puts the tables into docs/scale.md.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from scale_bends import by_log, of_training
from scale_costs import MODELS, Hardware, Job, measured
from scale_plans import VOTES, all_plans, chosen_plans
from scale_report import SHOWN, markdown, picture
from scale_validation import comparisons

PAGE = Path(__file__).parents[1] / "docs" / "scale.md"
BEGIN, END = "<!-- begin: benchmarks/simulate_scale.py --markdown -->", "<!-- end -->"


def arguments(words: Sequence[str] | None = None) -> argparse.Namespace:
    """Every assumption about hardware and every setting of the job is an option."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for kind in (Hardware, Job):
        for f in fields(kind):
            default: Any = f.default
            said = f"{f.metadata['unit']}; {f.metadata['source']}" if f.metadata else f"default {default}"
            option = f"--{f.name.replace('_', '-')}"
            parser.add_argument(option, type=type(default), default=default, help=said.replace("%", "%%"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--days", type=float, default=7, help="how long a training may take, for the cluster chosen")
    parser.add_argument("--markdown", action="store_true", help="print the tables of docs/scale.md")
    parser.add_argument("--write", action="store_true", help="put them into docs/scale.md")
    parser.add_argument("--json", type=Path, help="write every simulated plan here")
    parser.add_argument("--picture", type=Path, help="draw the curves here")
    return parser.parse_args(words)


def _settings(kind: type[Any], options: argparse.Namespace) -> Any:
    return kind(**{f.name: type(f.default)(getattr(options, f.name)) for f in fields(kind)})


def tables(options: argparse.Namespace) -> str:
    """As they stand in docs/scale.md."""
    hardware, job = _settings(Hardware, options), _settings(Job, options)
    plans = chosen_plans(hardware, job, options.seed, options.days, SHOWN)
    return markdown(plans, hardware, job, options.seed, options.days)


def between(page: str) -> tuple[str, str, str]:
    """A page as (before, tables, after). Raises ValueError without the two marks."""
    before, begin, rest = page.partition(BEGIN)
    found, end, after = rest.partition(END)
    if not (begin and end):
        raise ValueError(f"docs/scale.md: it needs a line {BEGIN} and a line {END}")
    return before + begin + "\n\n", found.strip(), "\n\n" + end + after


def everything(options: argparse.Namespace) -> dict[str, Any]:
    """All plans and limits, as plain values."""
    hardware, job = _settings(Hardware, options), _settings(Job, options)
    plans = [p.as_json() for v in VOTES for m in MODELS for p in all_plans(v, m, hardware, job, options.seed)]
    assumed = {name: value if value != float("inf") else None for name, value in asdict(hardware).items()}
    return {
        "seed": options.seed,
        "measured": {name: asdict(one) for name, one in measured().items()},
        "assumed": assumed,
        "job": asdict(job),
        "validation": [asdict(one) | {"factor": one.factor} for one in comparisons()],
        "by_log": {
            bend.what: dict(zip(map(str, SHOWN), bend.by_votes, strict=True)) for bend in by_log(SHOWN, hardware, job)
        },
        "of_training": dict(of_training(hardware, job, options.seed)),
        "plans": plans,
    }


def main() -> None:
    """Say, write and draw what was asked for; the tables if nothing was."""
    options = arguments()
    if options.write:
        before, _, after = between(PAGE.read_text())
        PAGE.write_text(before + tables(options) + after)
    if options.json:
        options.json.write_text(json.dumps(everything(options), indent=1, allow_nan=False) + "\n")
    if options.picture:
        picture(options.picture, _settings(Hardware, options), _settings(Job, options), options.seed)
    if options.markdown or not (options.json or options.picture or options.write):
        sys.stdout.write(tables(options) + "\n")


if __name__ == "__main__":
    try:
        main()
    except ValueError as error:
        sys.exit(str(error))
