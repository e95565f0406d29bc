"""Entry point on a cluster: `python jobs/train.py SPEC.yaml [section.key=value ...]`. Prints one JSON object."""

import json
import sys

from bco_ray.config.environment import prepare_environment

prepare_environment()  # before anything imports ray

from bco_ray.config import load_spec  # noqa: E402
from bco_ray.errors import BcoError, SpecError  # noqa: E402
from bco_ray.pipeline.cluster import cluster_for  # noqa: E402
from bco_ray.pipeline.resolve import resolve  # noqa: E402
from bco_ray.pipeline.run import run_job  # noqa: E402
from bco_ray.telemetry import Phases, configure_logging, logger  # noqa: E402


def main(arguments: list[str]) -> None:
    """Raises BcoError."""
    if not arguments:
        raise SpecError("usage: python jobs/train.py SPEC.yaml [section.key=value ...]")
    job = resolve(load_spec(arguments[0], arguments[1:]))
    with cluster_for(job):
        outcome = run_job(job, Phases())
    print(json.dumps({"model": outcome.version.reference, "evaluation": outcome.evaluation}))  # noqa: T201


if __name__ == "__main__":
    configure_logging()
    try:
        main(sys.argv[1:])
    except BcoError as error:
        logger.error("%s", error)
        sys.exit(error.exit_code)
