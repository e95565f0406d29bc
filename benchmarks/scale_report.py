"""The tables of docs/scale.md, and its picture."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scale_bends import by_log, of_training
from scale_costs import MODELS, Hardware, Job, Model, assumptions, measured
from scale_plans import VOTES, WORKERS, Plan, all_plans, plan
from scale_text import amount, duration, short, size
from scale_validation import STATED_FACTOR, comparisons

COLOURS = {"1B": "#2f6fde", "8B": "#1f9d61", "70B": "#d64545"}
WIDTHS = {"1B": 5.0, "8B": 2.0, "70B": 2.0}
"""Two curves lie on each other: arithmetic and traffic both grow with the weights."""
STAGES = {"settle": "#8a94a3", "tokenize": "#c3cad4", "reference": "#2f6fde", "fit": "#9b6fd6", "weigh": "#e0a030",
          "train": "#1f9d61", "register": "#1d2430"}  # fmt: skip
SHOWN = (1e6, 1e8, 1e10)
PICTURED = (MODELS[1], 64)
LARGER_WINDOW, LARGER_AT = 16_384, (64, 256, 1024)


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def markdown(plans: Sequence[Plan], hardware: Hardware, job: Job, seed: int, days: float) -> str:
    """All tables under their headings."""
    parts = [
        ("How far off the model is", _validated()),
        (f"The cluster for {days:g} days of training, or the quickest that is not wasteful", _chosen(plans)),
        ("How long each stage takes on it", _stages(plans)),
        ("GPU-hours and what they cost", _bill(plans, hardware)),
        ("Bytes on disk", _storage(plans)),
        ("Share of the GPUs' time that is arithmetic, by workers, 1e8 votes", _efficiency(hardware, job, seed)),
        ("What grows with the log", _grows(hardware, job)),
        ("What a step is bound by", table(("what", "numbers"), of_training(hardware, job, seed))),
        ("Measured inputs", _measured()),
        ("Assumed", _assumed(hardware)),
    ]  # fmt: skip
    return "\n\n".join(f"### {title}\n\n{body}" for title, body in parts)


def _validated() -> str:
    rows = [(c.what, short(c.predicted), short(c.measured), c.unit, f"x{c.factor:.2f}") for c in comparisons()]
    found = table(("run on a CPU", "predicted", "measured", "unit", "off by"), rows)
    return f"{found}\n\nNone is off by more than x{STATED_FACTOR:g}. It is all arithmetic on a CPU: no wire is in it."


def _name(one: Plan) -> tuple[str, str]:
    return amount(one.votes), one.model.name


def _chosen(plans: Sequence[Plan]) -> str:
    head = ("votes", "model", "workers", "ZeRO", "GPU memory", "host memory per worker", "step", "of it arithmetic",
            "sent per worker and step", "summed beside it", "failures", "training")  # fmt: skip
    return table(head, [_row(one) for one in plans])


def _row(one: Plan) -> tuple[str, ...]:
    step, run = one.step, one.run
    return (
        *_name(one), f"{one.workers:,}", str(one.stage), size(one.gpu_bytes), size(one.host_bytes),
        duration(step.seconds), f"{step.ideal / step.seconds:.0%}", size(step.bytes_per_worker), size(one.sum_bytes),
        str(run.failures), duration(run.seconds),
    )  # fmt: skip


def _stages(plans: Sequence[Plan]) -> str:
    names = tuple(plans[0].seconds)
    rows = [(*_name(one), *(_marked(one, name) for name in names)) for one in plans]
    return table(("votes", "model", *names), rows) + "\n\n† does not fit: see below."


def _marked(one: Plan, name: str) -> str:
    return duration(one.seconds[name]) + (" †" if name == "reference" and not one.reference_fits else "")


def _bill(plans: Sequence[Plan], hardware: Hardware) -> str:
    rows = []
    for one in plans:
        cpu_hours = sum(stage.cpu_hours for stage in one.stages)
        hours = one.gpu_hours
        rows.append(
            (*_name(one), short(hours["reference"]), short(hours["training"]), short(cpu_hours), short(one.cost))
        )
    head = ("votes", "model", "reference, GPU-h", "training, GPU-h", "settle, tokenize, fit, CPU-h")
    return table((*head, f"cost at {hardware.price:g} per GPU-hour"), rows)


def _storage(plans: Sequence[Plan]) -> str:
    names = tuple(plans[0].storage)
    return table(("votes", "model", *names), [(*_name(p), *(size(p.storage[n]) for n in names)) for p in plans])


def _efficiency(hardware: Hardware, job: Job, seed: int) -> str:
    rows = [_efficiency_row(model, WORKERS, hardware, job, seed) for model in MODELS]
    larger = replace(job, rows_per_step=LARGER_WINDOW)
    rows += [_efficiency_row(model, LARGER_AT, hardware, larger, seed) for model in MODELS]
    return table(("model", "rows a step", *(f"{workers:,}" for workers in WORKERS)), rows)


def _efficiency_row(model: Model, shown: Sequence[int], hardware: Hardware, job: Job, seed: int) -> tuple[str, ...]:
    found = {workers: plan(1e8, model, workers, hardware, job, seed) for workers in shown}
    cells = [f"{one.efficiency:.0%}, ZeRO {one.stage}" if (one := found.get(w)) else "-" for w in WORKERS]
    return model.name, f"{job.rows_per_step:,}", *cells


def _grows(hardware: Hardware, job: Job) -> str:
    rows = [(bend.what, *bend.by_votes) for bend in by_log(SHOWN, hardware, job)]
    return table(("votes", *map(amount, SHOWN)), rows)


def _measured() -> str:
    rows = [(name, f"{one.value:.2g}", one.unit, one.where) for name, one in measured().items()]
    return table(("cost", "value", "unit", "where"), rows)


def _assumed(hardware: Hardware) -> str:
    rows = []
    for name, unit, source in assumptions():
        value = getattr(hardware, name)
        rows.append((f"`--{name.replace('_', '-')}`", f"{value:g}", unit, source))
    return table(("option", "value", "unit", "source"), rows)


def picture(path: Path, hardware: Hardware, job: Job, seed: int) -> None:
    """Efficiency by workers, and time by stage by votes."""
    figure = Figure(figsize=(11, 4.2), dpi=130, layout="constrained", facecolor="white")
    left, right = figure.subplots(1, 2)
    _scaling(left, hardware, job, seed)
    _by_stage(right, hardware, job, seed)
    figure.savefig(path, metadata={"Software": None})


def _scaling(axes: Axes, hardware: Hardware, job: Job, seed: int) -> None:
    for model in MODELS:
        found = list(all_plans(1e8, model, hardware, job, seed))
        axes.plot([p.workers for p in found], [100 * p.efficiency for p in found], "o-", color=COLOURS[model.name],
                  label=model.name, lw=WIDTHS[model.name], ms=2 * WIDTHS[model.name])  # fmt: skip
    axes.set(xscale="log", xlabel="workers (one GPU each)", ylabel="share of GPU time that is arithmetic, %",
             ylim=(0, 102), title=f"Simulated: 1e8 votes, {job.rows_per_step:,} rows a step")  # fmt: skip
    axes.set_xscale("log", base=2)
    axes.legend(frameon=False)


def _by_stage(axes: Axes, hardware: Hardware, job: Job, seed: int) -> None:
    model, workers = PICTURED
    found = [one for votes in VOTES if (one := plan(votes, model, workers, hardware, job, seed))]
    for name, colour in STAGES.items():
        axes.plot([p.votes for p in found], [p.seconds[name] / 3600 for p in found], "o-", color=colour, label=name)
    axes.set(
        xscale="log", yscale="log", xlabel="votes", ylabel="hours", title=f"Simulated: {model.name}, {workers} workers"
    )
    axes.legend(frameon=False, fontsize=8)
