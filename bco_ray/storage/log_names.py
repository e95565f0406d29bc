"""Files that votes can be read from, told by the ends of their names: the one list."""

from __future__ import annotations

_TEXT = ("jsonl", "ndjson", "json", "csv")

READABLE = (*(f".{kind}{packed}" for kind in _TEXT for packed in ("", ".gz", ".zst")), ".parquet", ".arrow")
KNOWN = ".jsonl, .ndjson, .json and .csv (also with .gz or .zst after it), .parquet and .arrow"
"""The same in words."""


def extension_of(name: str) -> str:
    """`.jsonl.gz`, say, in small letters; nothing if no reader knows it."""
    small = name.lower()
    return next((extension for extension in READABLE if small.endswith(extension)), "")


def kind_of(name: str) -> tuple[str, str]:
    """`jsonl`, `json`, `csv`, `parquet` or `arrow`, and `gz`, `zst` or nothing; nothing twice if no reader knows it."""
    kind, _, packed = extension_of(name).removeprefix(".").partition(".")
    return "jsonl" if kind == "ndjson" else kind, packed
