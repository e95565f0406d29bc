"""A check of a log on a terminal: what was kept, why the rest was not, what the votes look like, what to do about it.

At most 100 columns, and nothing is said by colour alone. Text from the log is never markup.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from bco_ray.pipeline.printable import printable
from bco_ray.pipeline.report import CheckResult
from bco_ray.pipeline.verdict import Verdict

WIDTH = 100
ROWS_SHOWN = 8
NAME, DETAIL = 36, 240
_BAR = 20


def show_check(result: CheckResult, console: Console, more_hints: Sequence[str] = ()) -> None:
    """Print it all; what needs doing stands last, where the eye is. `more_hints`: DataReport.model_hints()."""
    found = result.statistics
    width = min(console.width, WIDTH)

    def show(what: RenderableType) -> None:
        if isinstance(what, Table):
            console.print()
        console.print(what, width=width, highlight=False)

    show(Text(result.headline, style="bold"))
    show(_accounts(result))
    _show_examples(result, show)
    if result.kept:
        for name in ("source", "model", "month"):
            if any(row["key"] != "(none)" for row in found[f"by_{name}"]):
                show(_rates(name, found[f"by_{name}"]))
        show(_lengths(found["length"]))
        show(_facts(found))
    _show_verdict(result.verdict, more_hints, show)


def _accounts(result: CheckResult) -> Table:
    table = _table("votes", "", "of read")
    table.add_row("read", _count(result.read), "")
    for reason, count in result.reasons:
        table.add_row(Text(f"dropped: {printable(reason, NAME)}"), f"-{count:,}", _percent(count, result.read))
    table.add_row("kept", _count(result.kept), _percent(result.kept, result.read), style="bold")
    for name, count in result.answers.items():
        table.add_row(Text(f"answers logged apart: {printable(name, NAME)}"), _count(count), "")
    return table


def _show_examples(result: CheckResult, show: Any) -> None:
    for reason, _ in result.reasons:
        for row in result.examples.get(reason, ())[:1]:
            where = f"{printable(row['file'], DETAIL)}:{row.get('line') or row['position']}"
            show(Text(f"{printable(reason, NAME)}, for example {where}: {printable(row['detail'], DETAIL)}"))


def _rates(name: str, rows: Sequence[Mapping[str, Any]]) -> Table:
    """Months are the last ones, in order of time; others those with most votes."""
    table = _table(name, "votes", "up", "down", "thumbs-up", "")
    shown = rows[-ROWS_SHOWN:] if name == "month" else rows[:ROWS_SHOWN]
    for row in shown:
        rate = row["up_rate"]
        bar = "█" * round(_BAR * rate) + "░" * (_BAR - round(_BAR * rate))
        counts = (_count(n) for n in (row["ups"] + row["downs"], row["ups"], row["downs"]))
        table.add_row(Text(printable(row["key"], NAME)), *counts, f"{rate:.1%}", bar)
    if len(rows) > len(shown):
        more = "earlier" if name == "month" else "more"
        table.add_row(f"({len(rows) - len(shown)} {more})", "", "", "", "", "")
    return table


def _lengths(lengths: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> Table:
    table = _table("characters", "p10", "median", "p90", "p99")
    for name, shown in (("prompt", "prompt"), ("completion", "answer")):
        for side in ("up", "down"):
            found = lengths[name][side]
            table.add_row(f"{shown}, thumbs-{side}", *(_count(found[q]) for q in ("p10", "p50", "p90", "p99")))
    return table


def _facts(found: Mapping[str, Any]) -> Table:
    users, agreement, prompts, extra = found["users"], found["agreement"], found["prompts"], found["rows_with"]
    table = _table("people and prompts", "")
    about = "" if users["exact"] else "about "
    table.add_row("users", f"{about}{users['distinct']:,} (of {extra['user']:,} votes that name one)")
    if extra["user"]:
        spread, top = users["votes_per_user"], users["top_share"]
        table.add_row("votes per user", f"median {spread['p50']:,}, p90 {spread['p90']:,}, p99 {spread['p99']:,}")
        table.add_row("busiest users", f"the first cast {top['1']:.1%} of their votes, the first ten {top['10']:.1%}")
    if agreement["pairs"]:
        rate = f"{agreement['rate']:.1%} of {agreement['pairs']:,} pairs (by chance {agreement['chance']:.1%})"
        table.add_row("agreement on an answer", rate)
    both, most = prompts["with_both_labels"], prompts["most_votes_on_one"]
    table.add_row("prompts", f"{prompts['distinct']:,}, {both:,} with both kinds of votes, at most {most:,} on one")
    table.add_row("answers", _count(found["responses"]["distinct"]))
    for name in ("comment", "correction", "siblings"):
        if extra[name]:
            table.add_row("with other answers" if name == "siblings" else f"with {name}", f"{extra[name]:,} votes")
    return table


def _show_verdict(verdict: Verdict, more_hints: Sequence[str], show: Any) -> None:
    show(Text())
    hints = (*verdict.hints, *more_hints)
    for kind, style, texts in (("problem", "bold red", verdict.problems), ("hint", "yellow", hints)):
        for text in texts:
            show(Text.assemble((f"{kind}: ", style), printable(text, 2 * len(text))))
    if verdict.usable:
        show(Text("Usable for training.", style="bold green"))
    else:
        show(Text("Not usable for training.", style="bold red"))


def _table(*columns: str) -> Table:
    """The first column is names, a single second one is text, more are numbers."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, padding=(0, 2, 0, 0), title_justify="left")
    for place, column in enumerate(columns):
        numbers = place > 0 and len(columns) > 2 and not (place == len(columns) - 1 and column == "")
        table.add_column(column, justify="right" if numbers else "left", no_wrap=numbers, overflow="fold")
    return table


def _count(number: int | None) -> str:
    return "-" if number is None else f"{number:,}"


def _percent(part: int, whole: int) -> str:
    return f"{part / whole:.1%}" if whole else "-"
