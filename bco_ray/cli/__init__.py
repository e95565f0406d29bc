"""The `bco` command. Importing this costs milliseconds; each command imports what it needs when it runs."""

from bco_ray.cli.app import main

__all__ = ["main"]
