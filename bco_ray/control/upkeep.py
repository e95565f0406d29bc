"""What is cleared away now and then: uploads that broke off, what webhooks were told long ago. Logs and jobs stay."""

from __future__ import annotations

import time
from collections.abc import Callable

from bco_ray.control.files import FileStore
from bco_ray.control.webhooks import WebhookStore
from bco_ray.errors import BcoError
from bco_ray.telemetry import logger

ORPHAN_SECONDS = 24 * 3600.0
"""Longer than any upload takes from its last byte to its row."""
DELIVERY_SECONDS = 30 * 24 * 3600.0


class Upkeep:
    """One chore that fails keeps no other from being done, and is tried again the next time."""

    def __init__(self, files: FileStore, webhooks: WebhookStore, *, clock: Callable[[], float] = time.time) -> None:
        self._files = files
        self._webhooks = webhooks
        self._clock = clock

    def run_once(self) -> None:
        """All chores. Takes as long as the disk and the database do."""
        for chore in (self._sweep_uploads, self._forget_deliveries):
            try:
                chore()
            except (BcoError, OSError) as error:
                logger.error("upkeep: %s", error)

    def _sweep_uploads(self) -> None:
        if removed := self._files.sweep(ORPHAN_SECONDS):
            logger.info("uploads that broke off were removed: %s", ", ".join(removed))

    def _forget_deliveries(self) -> None:
        if count := self._webhooks.forget(self._clock() - DELIVERY_SECONDS):
            logger.info("%d webhook deliveries older than 30 days were removed", count)
