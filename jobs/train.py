"""Entry point on a cluster: `python jobs/train.py SPEC.yaml [section.key=value ...]`. Same as `bco run --json`."""

import sys

from bco_ray.config.environment import prepare_environment

prepare_environment()

if __name__ == "__main__":
    sys.argv = ["bco", "run", "--json", sys.argv[1], *(f"--set={override}" for override in sys.argv[2:])]
    from bco_ray.cli import main

    main()
