"""Registers a model as the result of a run and promotes it. No test.

python registrar.py STORAGE SOURCE RUN
"""

import sys
from pathlib import Path

from bco_ray.storage.registry import Registry

if __name__ == "__main__":
    storage, source, run = sys.argv[1:]
    registry = Registry(Path(storage))
    version = registry.register("bot", Path(source), {"run": run})
    registry.promote("bot", version.version, expected=registry.aliases("bot").get("prod"))
