"""What the page is made of, in memory: a handful of small files, each also packed."""

from __future__ import annotations

import gzip
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

STATIC = Path(__file__).with_name("static")
INDEX = "index.html"

_KINDS = {".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml", ".html": "text/html"}
"""Whatever else lies there is not served."""

MEDIA_TYPES = tuple(_KINDS.values())


@dataclass(frozen=True)
class Asset:
    """A file. `packed` is its gzip; `etag` changes with its content."""

    media_type: str
    body: bytes
    packed: bytes
    etag: str


def load(static: Path = STATIC) -> Mapping[str, Asset]:
    """By name. Names other than the page's own change with the content, so they may be kept for ever."""
    return {path.name: _asset(path) for path in sorted(static.iterdir()) if path.suffix in _KINDS}


def _asset(path: Path) -> Asset:
    body = path.read_bytes()
    etag = f'"{hashlib.sha256(body).hexdigest()[:32]}"'
    return Asset(_KINDS[path.suffix], body, gzip.compress(body, mtime=0), etag)
