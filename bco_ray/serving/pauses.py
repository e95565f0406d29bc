"""Garbage collection in a process that answers requests."""

import gc


def keep_what_is_loaded() -> None:
    """Call once all is imported and loaded: it stays, so Python's full collections need not look at it any more.

    With torch and transformers in the process one of them took 0.2 s, in the middle of a request.
    """
    gc.collect()
    gc.freeze()
