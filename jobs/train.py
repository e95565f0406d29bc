"""Entry point on a cluster: `python jobs/train.py SPEC.yaml [section.key=value ...]`. Prints one JSON object."""

import json
import sys

from bco_ray.config.environment import prepare_environment

prepare_environment()  # before anything imports ray

from bco_ray.config import load_spec  # noqa: E402
from bco_ray.pipeline.cluster import cluster  # noqa: E402
from bco_ray.pipeline.resolve import resolve  # noqa: E402
from bco_ray.pipeline.run import run_job  # noqa: E402
from bco_ray.telemetry import Phases, configure_logging  # noqa: E402

if __name__ == "__main__":
    configure_logging()
    job = resolve(load_spec(sys.argv[1], sys.argv[2:]))
    with cluster(workers=job.spec.training.num_workers):
        outcome = run_job(job, Phases())
    print(json.dumps({"model": outcome.version.reference, "evaluation": outcome.evaluation}))  # noqa: T201
