"""The Ray cluster a command works on: the one RAY_ADDRESS names, else a private one on this machine."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager

import ray
import ray.data

from bco_ray.errors import BcoError
from bco_ray.telemetry import logger


@contextmanager
def cluster(*, workers: int, object_store_bytes: int | None = None) -> Iterator[None]:
    """Connected for the body's duration. A local cluster has room for `workers` and for Ray Data beside them.

    If Train took every CPU, Ray Data would wait for one for ever; so a local cluster always offers two more than the
    workers need, whatever the machine has. An error of ours that was raised on a worker leaves as itself, without
    Ray's traceback around it.
    """
    if ray.is_initialized():
        yield
        return
    if os.environ.get("RAY_ADDRESS"):
        ray.init(log_to_driver=False, logging_level=logging.WARNING)
    else:
        ray.init(
            address="local",
            num_cpus=max(os.cpu_count() or 1, workers + 2),
            object_store_memory=object_store_bytes,
            log_to_driver=False,
            logging_level=logging.WARNING,
        )
    configure_data()
    try:
        yield
    except BcoError as error:
        cause = getattr(error, "cause", None)
        raise cause if isinstance(cause, BcoError) else error from None
    finally:
        ray.shutdown()


def configure_data() -> None:
    """Ray Data keeps the log's order (shards then come out the same every time) and leaves the bars to us."""
    context = ray.data.DataContext.get_current()
    context.execution_options.preserve_order = True
    context.enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # what fails there is raised too
    logging.getLogger("ray.train").setLevel(logging.ERROR)
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    logger.debug("connected to Ray: %s", ray.cluster_resources())
