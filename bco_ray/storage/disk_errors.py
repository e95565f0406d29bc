"""A full disk as OSError also where a library written in Rust (safetensors, tokenizers) has exceptions of its own."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

_CODE = re.compile(r"\(os error (\d+)\)")


@contextmanager
def disk_errors() -> Iterator[None]:
    """What the operating system refused inside comes out as the OSError that it was."""
    try:
        yield
    except OSError:
        raise
    except Exception as error:
        if code := _CODE.search(str(error)):
            raise OSError(int(code[1]), str(error)) from error
        raise
