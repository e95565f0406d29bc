"""How large a log is once it is unpacked: measured on the heads of a few files, since repetitive logs pack well."""

from __future__ import annotations

import zlib
from collections import defaultdict
from collections.abc import Sequence
from functools import lru_cache

import pyarrow as pa
import pyarrow.parquet as pq
from backports import zstd

from bco_ray.feedback.sources import SourceFile
from bco_ray.storage import locations

HEAD_BYTES = 256 << 10
MOST_UNPACKED_BYTES = 64 << 20
FILES_SAMPLED = 4
USUAL = {"gz": 6.0, "zst": 6.0, "parquet": 3.0}


@lru_cache(maxsize=64)
def unpacked_bytes(sources: tuple[SourceFile, ...]) -> int:
    """Bytes of JSON in these files, roughly, from their content alone: the largest few of a kind are looked into."""
    by_kind: dict[str, list[SourceFile]] = defaultdict(list)
    for source in sources:
        by_kind[source.compression or source.kind].append(source)
    return round(sum(_ratio(kind, files) * sum(f.bytes for f in files) for kind, files in by_kind.items()))


def _ratio(kind: str, files: Sequence[SourceFile]) -> float:
    if kind not in USUAL:
        return 1.0
    largest = sorted(files, key=lambda file: (-file.bytes, file.path))[:FILES_SAMPLED]
    return max(_measured(kind, file) for file in largest)


def _measured(kind: str, file: SourceFile) -> float:
    with locations.open_input(file.path) as opened:
        try:
            if kind == "parquet":
                footer = pq.ParquetFile(opened).metadata
                groups = (footer.row_group(n).total_byte_size for n in range(footer.num_row_groups))
                return float(max(1.0, sum(groups) / max(file.bytes, 1)))
            head = opened.read(HEAD_BYTES)
            unpacked = _unpack(kind, head)
        except (EOFError, OSError, zlib.error, zstd.ZstdError, pa.ArrowInvalid):
            return USUAL[kind]  # damaged: reading it will say so
        return max(1.0, len(unpacked) / max(len(head), 1))


def _unpack(kind: str, head: bytes) -> bytes:
    """What a packed head holds, up to a bound on memory."""
    if kind == "gz":
        return zlib.decompressobj(wbits=31).decompress(head, MOST_UNPACKED_BYTES)
    return zstd.ZstdDecompressor().decompress(head, max_length=MOST_UNPACKED_BYTES)
