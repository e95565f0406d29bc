"""The charts of an evaluation, in the report's style. A chart without data is left out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes

from bco_ray.pipeline.charts import BLUE, GREEN, GREY, INK, RED, Chart, name_axis, share_axis
from bco_ray.storage.evaluations import Estimate, Evaluation, ReliabilityBin, Votes

Named = Sequence[tuple[str, Estimate]]


def charts_of(found: Evaluation) -> list[Chart]:
    """Those that have something to show."""
    others = found.opponents
    aucs = _known({found.model: found.votes, **{other.model: other.votes for other in others}})
    rates = [(other.model, other.win_rate.rate) for other in others if other.win_rate]
    lengths = [(found.model, found.answer_tokens), *((other.model, other.answer_tokens) for other in others)]
    charts = _of_votes(found.votes) if found.votes else []
    if len(aucs) > 1:
        charts.append(Chart("Held-out AUC", lambda axes: _dots(axes, aucs, middle=0.5)))
    if _any(rates):
        charts.append(Chart("Win rate against", lambda axes: _dots(axes, rates, middle=0.5, share=True)))
    if _any(lengths):
        charts.append(Chart("Length of answers, tokens", lambda axes: _dots(axes, lengths)))
    return charts


def _of_votes(votes: Votes) -> list[Chart]:
    by_source = [(name, group.metrics["auc"]) for name, group in votes.by_source.items() if "auc" in group.metrics]
    charts = [Chart("Implicit reward of held-out votes", lambda axes: _rewards(axes, votes))]
    if votes.reliability:
        charts.append(Chart("Chance of a thumbs-up", lambda axes: _reliability(axes, votes.reliability)))
    if len(by_source) > 1 and _any(by_source):
        charts.append(Chart("AUC by source", lambda axes: _dots(axes, by_source, middle=0.5)))
    return charts


def _known(votes: Mapping[str, Votes | None]) -> Named:
    found = [(name, its.metrics["auc"]) for name, its in votes.items() if its is not None]
    return [(name, auc) for name, auc in found if auc.value is not None]


def _any(rows: Named) -> bool:
    return any(estimate.value is not None for _, estimate in rows)


def _rewards(axes: Axes, votes: Votes) -> None:
    """Shares of each class's votes; the dotted line is delta."""
    for label, counts, colour in (("thumbs-up", votes.bars.up, GREEN), ("thumbs-down", votes.bars.down, RED)):
        if total := sum(counts):
            shares = [count / total for count in counts]
            axes.stairs(shares, votes.bars.edges, color=colour, fill=True, alpha=0.22)
            axes.stairs(shares, votes.bars.edges, color=colour, lw=1.5, label=f"{label} ({total:,})")
    axes.axvline(votes.delta, color=GREY, ls=":", lw=1.5)
    axes.annotate("delta", (votes.delta, 1), xycoords=("data", "axes fraction"), xytext=(4, -10),
                  textcoords="offset points", fontsize=9, color=GREY)  # fmt: skip
    share_axis(axes, "y")
    if any([*votes.bars.up, *votes.bars.down]):
        axes.legend(frameon=False, fontsize=9, loc="upper left")
    axes.margins(y=0.22)


def _reliability(axes: Axes, bins: Sequence[ReliabilityBin]) -> None:
    """What was predicted, and how many were up; on the dotted line they are the same."""
    ends = [b.predicted for b in bins] + [b.observed for b in bins]
    low, high = max(0.0, min(ends) - 0.05), min(1.0, max(ends) + 0.05)
    axes.plot([low, high], [low, high], color=GREY, ls=":", lw=1)
    axes.plot([b.predicted for b in bins], [b.observed for b in bins], color=BLUE, marker="o", markersize=5)
    share_axis(axes, "y")
    share_axis(axes, "x")
    axes.set_xlabel("predicted, both classes weighing the same", fontsize=9, color=GREY)
    axes.set_ylabel("observed", fontsize=9, color=GREY)


def _dots(axes: Axes, rows: Named, *, middle: float | None = None, share: bool = False) -> None:
    """A dot, its interval and its number per name, downwards."""
    if middle is not None:
        axes.axvline(middle, color=GREY, ls=":", lw=1)
    for place, (_, found) in enumerate(rows):
        if found.value is None:
            continue
        if found.low is not None and found.high is not None:
            axes.hlines(place, found.low, found.high, color=BLUE, lw=5, alpha=0.3)
        axes.plot([found.value], [place], "o", color=BLUE, markersize=6)
        text = f"{found.value:.0%}" if share else f"{found.value:.3g}"
        axes.text(1.02, place, text, transform=axes.get_yaxis_transform(), va="center", fontsize=9, color=INK)
    name_axis(axes, [name for name, _ in rows])
    axes.grid(axis="x", color="#e4e8ee", lw=0.8)
    if share:
        share_axis(axes, "x")
        axes.set_xlim(0, 1)
