"""How many tokens a micro-batch may have, found by trying: real rows through the real engine, before the first step.

The budget doubles while the next size is foreseen to fit and this one was worth it. What was found is written down, so
that a run that goes on after an interruption computes in the same micro-batches as before.
"""

from __future__ import annotations

import gc
import json
import os
import resource
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from bco_ray.storage import files
from bco_ray.telemetry import logger
from bco_ray.training.batches import MicroBatch, assemble
from bco_ray.training.engine import Engine
from bco_ray.training.gang import Gang
from bco_ray.training.shard_reader import Row

FILE = "dry_run.json"

USABLE = 0.85
"""Of the memory there is."""

WORTH_IT = 1.05
"""A larger micro-batch must be quicker by this factor to be taken."""


@dataclass(frozen=True)
class Trial:
    """One size: tokens of a micro-batch, tokens/s of one worker, most bytes in use, bytes there are for it."""

    tokens: int
    tokens_per_second: float
    peak_bytes: int
    foreseen_bytes: int
    """At twice the tokens."""
    limit_bytes: int


def remembered(run: Path) -> int | None:
    """What an earlier attempt of this run found."""
    path = run / FILE
    return int(json.loads(path.read_text())["max_tokens_per_micro_batch"]) if path.is_file() else None


def remember(run: Path, tokens: int) -> None:
    """Let attempts from here on use another size than was found: it was too much after all."""
    path = run / FILE
    found = files.read_json(path) if path.is_file() else {"trials": []}
    files.write_json(path, {**found, "max_tokens_per_micro_batch": tokens})


def find_budget(engine: Engine, gang: Gang, rows: Sequence[Row], *, least: int, run: Path) -> int:
    """Tokens per micro-batch, the same on every worker; `least`, or more as far as a worker's share of `rows` goes.

    Collective. Takes real optimizer steps: the engine is of no use afterwards.
    """
    most = -(-sum(len(row.input_ids) for row in rows) // gang.size)
    trials: list[Trial] = []
    best = tokens = least
    while tokens <= most:
        trial = _try(engine, gang, rows, tokens)
        trials.append(trial)
        slower = len(trials) > 1 and trial.tokens_per_second < WORTH_IT * trials[-2].tokens_per_second
        best = best if slower else tokens
        if slower or trial.foreseen_bytes > trial.limit_bytes:
            break
        tokens *= 2
    if gang.rank == 0:
        _report(trials, best, run)
    gang.barrier()
    return best


def free_memory() -> None:
    """What the dry run's model held, cycles included, before the real one is loaded."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _try(engine: Engine, gang: Gang, rows: Sequence[Row], tokens: int) -> Trial:
    """The second of two steps counts: in the first one memory is still being asked for."""
    batch = _filled(rows, tokens).to(engine.device)
    _one_step(engine, batch)
    before = _in_use(engine.device)
    started = time.monotonic()
    _one_step(engine, batch)
    seconds = time.monotonic() - started
    peak = _most_in_use(engine.device)
    numbers = torch.tensor([sum(batch.pack.lengths) / seconds, peak, 2 * peak - before], dtype=torch.float64)
    speed, peak_sum, foreseen_sum = gang.sum(numbers).tolist()
    limit = gang.sum(torch.tensor(float(_limit(engine.device, gang.size)), dtype=torch.float64)).item()
    return Trial(tokens, *(round(x / gang.size) for x in (speed, peak_sum, foreseen_sum, limit)))


def _filled(rows: Sequence[Row], tokens: int) -> MicroBatch:
    """Rows of the window, over again if they do not reach, up to `tokens` tokens (at least one row)."""
    chosen: list[Row] = []
    size = 0
    while size < tokens:
        for row in sorted(rows, key=lambda r: -len(r.input_ids)):
            if not chosen or size + len(row.input_ids) <= tokens:
                chosen.append(row)
                size += len(row.input_ids)
        if size + min(len(row.input_ids) for row in rows) > tokens:
            break
    return assemble(chosen, range(len(chosen)), len(chosen))


def _one_step(engine: Engine, batch: MicroBatch) -> None:
    if engine.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    engine.backward(engine.forward(batch.pack).mean())
    engine.step()
    if engine.device.type == "cuda":
        torch.cuda.synchronize()


def _in_use(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.memory_allocated()
    pages = int(Path("/proc/self/statm").read_text().split()[1]) if Path("/proc/self/statm").exists() else 0
    return pages * os.sysconf("SC_PAGE_SIZE")


def _most_in_use(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _limit(device: torch.device, workers: int) -> int:
    """What one worker may use; without GPUs all of them are taken to share this machine's memory."""
    if device.type == "cuda":
        return int(USABLE * torch.cuda.mem_get_info()[1])
    return int(USABLE * os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / workers)


def _report(trials: Sequence[Trial], best: int, run: Path) -> None:
    for trial in trials:
        logger.info(
            "dry run: micro-batches of %d tokens: %d tokens/s per worker, %.2f of %.2f GiB",
            trial.tokens, trial.tokens_per_second, trial.peak_bytes / 2**30, trial.limit_bytes / 2**30,
        )  # fmt: skip
    logger.info("dry run: training.max_tokens_per_micro_batch = %d", best)
    found = {"max_tokens_per_micro_batch": best, "trials": [asdict(trial) for trial in trials]}
    files.write_json(run / FILE, found)
