"""The options of `bco jobs`. The server says what values it takes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

SERVER = "http://127.0.0.1:8000"

Id = Annotated[str, typer.Argument(metavar="ID", help="ftjob-...")]
Url = Annotated[str, typer.Option("--url", envvar="BCO_BASE_URL", help="The server.")]
SpecFile = Annotated[Path | None, typer.Argument(metavar="SPEC", help="YAML spec (docs/spec.md), or flags alone.")]

Model = Annotated[
    str | None, typer.Option("--model", metavar="REF", help="name@prod, a directory, s3://..., a hub id.")
]
TrainingFile = Annotated[
    str | None,
    typer.Option(
        "--training-file",
        metavar="LOG",
        help="A local file (it is uploaded), an uploaded file's id, a path or URI that the server reads, or feedback.",
    ),
]
Method = Annotated[str | None, typer.Option("--method", help="bco, bce, kto, apo_zero_unpaired, dpo, bco_pair, sft.")]
Suffix = Annotated[str | None, typer.Option("--suffix", metavar="NAME", help="The registry's name of the result.")]
Epochs = Annotated[int | None, typer.Option("--n-epochs", help="Times through the votes.")]
BatchSize = Annotated[int | None, typer.Option("--batch-size", help="Votes per optimizer step.")]
LearningRate = Annotated[float | None, typer.Option("--learning-rate", help="The rate itself, no multiplier.")]
Beta = Annotated[float | None, typer.Option("--beta", help="Of the implicit reward.")]
Seed = Annotated[int | None, typer.Option("--seed", help="Of order and initial adapter weights.")]
Priority = Annotated[int | None, typer.Option("--priority", help="Higher comes first.")]
Metadata = Annotated[list[str], typer.Option("--metadata", metavar="k=v", help="May be repeated.")]
IdempotencyKey = Annotated[
    str | None,
    typer.Option("--idempotency-key", help="The same again: the same job.", show_default="a random one"),
]
Hours = Annotated[float | None, typer.Option("--budget-hours", help="Most hours it may run.")]
GpuHours = Annotated[float | None, typer.Option("--budget-gpu-hours", help="Most hours times GPUs.")]
Tokens = Annotated[int | None, typer.Option("--budget-tokens", help="Most tokens it may train on.")]
Deadline = Annotated[str | None, typer.Option("--deadline", metavar="TIME", help="2026-12-01T18:00, or +6h.")]

DryRun = Annotated[bool, typer.Option("--dry-run", help="Only what it would cost; nothing is made.")]
Wait = Annotated[bool, typer.Option("--wait", help="Follow it to its end; exit 0 only if it succeeded.")]
Watch = Annotated[bool, typer.Option("--wait", "--watch", help="Follow it to its end; exit 0 only if it succeeded.")]
Settled = Annotated[bool, typer.Option("--wait", help="Until it is really so.")]
Follow = Annotated[bool, typer.Option("--follow", "-f", help="And those to come, until the job has ended.")]
Png = Annotated[Path | None, typer.Option("--png", metavar="FILE", help="Draw its curves so far (at last) here.")]
