"""A round in one process, for machines where starting workers takes longer than their work.

The pipeline's stages stay what they are. Only what Ray Data would spread over workers is done here, one block after
another, and the training is not given a group of workers. Nothing is lazy; blocks are tables of a small log.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from importlib import import_module
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import pyarrow as pa

SPREADING = ("feedback.records", "scoring.score", "scoring.spread", "evaluation.heldout")
"""The modules on a round's way that spread work by the name `ray`."""


class Blocks:
    """As much of `ray.data.Dataset` as those modules use."""

    def __init__(self, tables: Sequence[pa.Table]) -> None:
        self._tables = [table for table in tables if table.num_rows]

    def repartition(self, blocks: int | None = None, **_: Any) -> Blocks:
        """All in one block, as a small log is."""
        if blocks not in (None, 1):
            raise ValueError(f"{blocks} blocks: this log is too large for one process")
        return Blocks([pa.concat_tables(self._tables)] if self._tables else [])

    def map(self, stage: Any, *, fn_constructor_args: Sequence[Any] = (), **_: Any) -> Blocks:
        """Row by row."""
        call = stage(*fn_constructor_args) if isinstance(stage, type) else stage
        return Blocks([pa.Table.from_pylist([call(row)]) for row in self.iter_rows()])

    def map_batches(self, stage: Any, *, fn_constructor_kwargs: dict[str, Any] | None = None, **_: Any) -> Blocks:
        """Block by block."""
        call = stage(**(fn_constructor_kwargs or {})) if isinstance(stage, type) else stage
        return Blocks([made for table in self._tables for made in _tables(call(table))])

    def iter_rows(self) -> Iterator[dict[str, Any]]:
        for table in self._tables:
            yield from table.to_pylist()

    def iter_batches(self, **_: Any) -> Iterator[pa.Table]:
        yield from self._tables


def _tables(made: Any) -> Iterator[pa.Table]:
    if isinstance(made, pa.Table):
        yield made
    else:
        yield from made


def from_items(items: Sequence[dict[str, Any]], **_: Any) -> Blocks:
    """A block per item."""
    return Blocks([pa.Table.from_pylist([item]) for item in items])


def read_datasource(source: Any) -> Blocks:
    """All of its read tasks."""
    return Blocks([table for task in source.get_read_tasks(1) for table in task()])


def remote(**_: Any) -> Callable[[Callable[..., Any]], Any]:
    """A task is done when it is asked for."""
    return lambda function: SimpleNamespace(remote=function)


ALONE = SimpleNamespace(
    data=SimpleNamespace(from_items=from_items, read_datasource=read_datasource, Dataset=Blocks),
    remote=remote,
    get=lambda result: result,
)


@contextmanager
def alone() -> Iterator[None]:
    """The stages' work is done here while this lasts."""
    with ExitStack() as stack:
        for name in SPREADING:
            stack.enter_context(patch.object(import_module(f"bco_ray.{name}"), "ray", ALONE))
        yield


def run_alone(job: Any, phases: Any) -> Any:
    """`run_job` in this process: it finds the model there, and has the rest to do."""
    from bco_ray.config import dump_spec
    from bco_ray.pipeline.run import run_job, score_job, train_setup
    from bco_ray.training.gang import SoloGang
    from bco_ray.training.loop import train

    with alone():
        score_job(job, phases)
        job.run_directory.mkdir(parents=True, exist_ok=True)
        (job.run_directory / "spec.resolved.yaml").write_text(dump_spec(job.spec))
        with phases.phase("train alone"):
            train(train_setup(job), SoloGang())
        return run_job(job, phases)
