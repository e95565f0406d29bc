"""What a log turned out to be: the results of `bco data check` and `report`, as JSON, as a page, as a picture."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from bco_ray.pipeline.pages import templates
from bco_ray.pipeline.verdict import Verdict, judge
from bco_ray.storage import files

EXAMPLES_PER_REASON = 3
MOST_BYTES_COUNTED = 64 << 20
EXAMPLE_CHARACTERS = 200
PROMPT_CHARACTERS = 400
LITTLE_LEFT, MANY_ELSEWHERE = 0.30, 0.50


@dataclass(frozen=True)
class CheckResult:
    """`read = kept + sum(drops)`. `answers`: the other side of a join. `statistics`: LogSums.summary().

    `files`: {path, format, bytes}. `examples`: by reason {file, position, line, detail, raw}, see `examples_of`.
    `ups_suffice`: whether it is for a loss that takes thumbs-up alone.
    """

    files: Sequence[Mapping[str, Any]]
    read: int
    kept: int
    drops: Mapping[str, int]
    statistics: Mapping[str, Any]
    answers: Mapping[str, int] = field(default_factory=dict)
    examples: Mapping[str, Sequence[Mapping[str, Any]]] = field(default_factory=dict)
    ups_suffice: bool = False

    @cached_property
    def verdict(self) -> Verdict:
        return judge(self.read, self.kept, self.drops, self.examples, self.statistics, ups_suffice=self.ups_suffice)

    @property
    def headline(self) -> str:
        """One line to understand it by."""
        rate = self.statistics["up_rate"]
        up = "" if rate is None else f", {rate:.1%} thumbs-up"
        return f"{self.kept:,} of {self.read:,} votes kept{up}"

    @property
    def reasons(self) -> list[tuple[str, int]]:
        """Drops, the most frequent first."""
        return sorted(self.drops.items(), key=lambda item: (-item[1], item[0]))

    def as_json(self) -> dict[str, Any]:
        """What `--json` prints."""
        return {
            "read": self.read,
            "kept": self.kept,
            "drops": dict(self.drops),
            "answers": dict(self.answers),
            "verdict": self.verdict.as_json(),
            "files": [dict(file) for file in self.files],
            "examples": {reason: [dict(row) for row in rows] for reason, rows in self.examples.items()},
            "statistics": dict(self.statistics),
        }


@dataclass(frozen=True)
class DataReport:
    """The check and what the reference model adds.

    `matching`: DensityReport.as_json(). `lengths`: the report of length matching.
    `look_alikes`: {label: up|down, like_other: bool, log_ratio, prompt} rows, the
    prompts most (and least) like those of the other class, as text or as the JSON of their messages. `token_length`:
    by label (up, down) {p10, p50, ...}. `weight_bars`: (lower edge, rows) of the density weights. `mixture`: whose
    answers the votes are on, what age leaves of them (scoring.mixing_passes). `class_weights`: {chosen, rejected,
    capped}.
    """

    check: CheckResult
    matching: Mapping[str, Any] = field(default_factory=dict)
    lengths: Mapping[str, Any] = field(default_factory=dict)
    look_alikes: Sequence[Mapping[str, Any]] = ()
    token_length: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    weight_bars: Sequence[tuple[float, int]] = ()
    mixture: Mapping[str, Any] = field(default_factory=dict)
    class_weights: Mapping[str, Any] = field(default_factory=dict)

    @property
    def hints(self) -> tuple[str, ...]:
        """The check's, and those that only the model can give."""
        return (*self.check.verdict.hints, *self.model_hints())

    def as_json(self) -> dict[str, Any]:
        found = self.check.as_json()
        return {
            **found,
            "verdict": {**found["verdict"], "hints": list(self.hints)},
            "matching": dict(self.matching),
            "lengths": dict(self.lengths),
            "look_alikes": [dict(row) for row in self.look_alikes],
            "token_length": {label: dict(quantiles) for label, quantiles in self.token_length.items()},
            "weight_bars": [list(bar) for bar in self.weight_bars],
            "mixture": dict(self.mixture),
            "class_weights": dict(self.class_weights),
        }

    def model_hints(self) -> list[str]:
        """What the check could not know: matching that leaves little, answers of other models, capped classes."""
        hints = [str(warning) for warning in self.matching.get("warnings") or ()]
        left = self.matching.get("ess_fraction")
        if self.matching.get("applied") and left is not None and left < LITTLE_LEFT:
            hints.append(
                f"Matching leaves {left:.0%} of the thumbs-down votes' information: their prompts are far from those "
                "with thumbs-up. Lower scoring.max_density_ratio, or give votes on more alike prompts."
            )
        hints += _mixture_hints(self.mixture)
        if self.class_weights.get("capped"):
            hints.append(
                "The classes are so uneven that their weights met the cap: the rarer one counts for less than half. "
                "Collect more of it, or raise the cap."
            )
        return hints


def _mixture_hints(mixture: Mapping[str, Any]) -> Iterator[str]:
    elsewhere = (mixture.get("off_policy") or {}).get("of_named", 0.0)
    if elsewhere > MANY_ELSEWHERE:
        yield (
            f"{elsewhere:.0%} of the answers are not the current model's own. It learns more from "
            "votes on what it says itself: serve it, collect, and train again."
        )
    for kind, left in (mixture.get("ess_fraction") or {}).items():
        if left is not None and left < LITTLE_LEFT:
            side = {"chosen": "up", "rejected": "down"}[kind]
            yield (
                f"Age and other versions' answers leave {left:.0%} of the thumbs-{side} votes' information. Set a "
                "longer rounds.half_life_days or a higher rounds.off_policy_weight, or look for votes with wrong dates."
            )


def examples_of(refused: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, list[dict[str, Any]]]:
    """Refused rows (schema.QUARANTINE) by reason, as a result shows them: few, short, and as text."""
    return {
        reason: [
            {
                "file": row["file"],
                "position": row["position"],
                "line": line_of(row["file"], row["position"]),
                "detail": row["detail"],
                "raw": (row["raw"] or b"")[: 4 * EXAMPLE_CHARACTERS].decode("utf-8", "replace")[:EXAMPLE_CHARACTERS],
            }
            for row in rows[:EXAMPLES_PER_REASON]
        ]
        for reason, rows in refused.items()
    }


def line_of(file: str, position: int) -> int | None:
    """The line (or row) of a file, from 1, as an editor counts; None where that would take reading too much.

    A row of a plain JSON-lines file is known by its byte offset, any other by its number.
    """
    if not file.endswith((".jsonl", ".ndjson")):
        return position + 1
    path = Path(file)
    if position > MOST_BYTES_COUNTED or not path.is_file():
        return None
    with path.open("rb") as lines:
        return lines.read(position).count(b"\n") + 1


def write_report(report: DataReport, directory: Path) -> dict[str, Path]:
    """Write report.html (self-contained, runs nothing), report.json and report.png; returns their paths by suffix."""
    from bco_ray.pipeline import charts

    drawn = charts.charts_of(report.check.statistics, report.check.drops, report.weight_bars)
    pictures = [(chart.title, base64.b64encode(charts.picture(chart)).decode("ascii")) for chart in drawn]
    written = {
        "html": render(report, pictures).encode(),
        "json": json.dumps(report.as_json(), ensure_ascii=False, indent=1).encode(),
        "png": charts.sheet(drawn, report.check.headline),
    }
    paths = {kind: directory / f"report.{kind}" for kind in written}
    for kind, data in written.items():
        files.write_bytes(paths[kind], data)
    return paths


def render(report: DataReport, pictures: Sequence[tuple[str, str]]) -> str:
    """The page. `pictures`: (title, PNG as base64). All text is escaped: it comes from the log."""
    environment = templates(Path(__file__).parent)
    environment.filters |= {
        "whole": _whole,
        "percent": _percent,
        "number": _number,
        "bytes": _bytes,
        "conversation": _conversation,
    }
    page: str = environment.get_template("report.html").render(
        report=report, check=report.check, found=report.check.statistics, pictures=pictures
    )
    return page.encode("utf-8", "replace").decode()


def _conversation(prompt: str) -> str:
    """The words of a prompt column, shortened."""
    try:
        messages = json.loads(prompt)
    except ValueError:
        return prompt[:PROMPT_CHARACTERS]
    if not isinstance(messages, list):
        return prompt[:PROMPT_CHARACTERS]
    said = [message.get("content") for message in messages if isinstance(message, dict)]
    return " / ".join(text for text in said if isinstance(text, str))[:PROMPT_CHARACTERS]


def _whole(value: float | None) -> str:
    return "-" if value is None else f"{value:,.0f}"


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f} %"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"


def _bytes(size: float) -> str:
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TiB"
