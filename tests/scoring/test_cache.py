"""The reference cache: only files that can hold a key are opened, nothing is written twice, and it can forget."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from bco_ray.errors import StorageError
from bco_ray.scoring.cache import ContentCache, Span


def key(number: int) -> bytes:
    return number.to_bytes(16)


def span(*hashes: int) -> Span:
    return Span.of(np.array(hashes, np.int64))


def values(*numbers: int, width: int = 3) -> dict[bytes, np.ndarray]:
    return {key(n): np.full(width, n, np.float32) for n in numbers}


def test_what_was_added_is_found_and_nothing_else(tmp_path: Path) -> None:
    cache = ContentCache(tmp_path / "not" / "there")
    assert cache.find(span(0), {key(1)}) == {}
    cache.add(span(-5, 5), values(1, 2))
    cache.add(span(-5, 5), values(3))
    found = cache.find(span(0), {key(1), key(3), key(9)})
    assert found.keys() == {key(1), key(3)}
    np.testing.assert_array_equal(found[key(3)], [3, 3, 3])


def test_spans_sort_like_unsigned_hashes() -> None:
    low, high = span(-(2**63), -1), span(0, 2**63 - 1)
    name = f"{low.low}-{low.high}-{'0' * 12}.parquet"
    assert low.meets(name)
    assert not high.meets(name)
    assert span(-1, 0).meets(name)
    assert not low.meets("README.md")


def test_only_files_of_the_range_are_opened(tmp_path: Path) -> None:
    cache = ContentCache(tmp_path)
    cache.add(span(-100, -50), values(1))
    cache.add(span(50, 100), values(2))
    for path in tmp_path.iterdir():
        if span(-100, -50).meets(path.name):
            path.write_bytes(b"torn")
    assert cache.find(span(60), {key(2), key(1)}).keys() == {key(2)}
    with pytest.raises(StorageError, match="Delete it"):
        cache.find(span(-60), {key(1)})


def test_the_first_of_several_entries_counts_and_files_are_never_changed(tmp_path: Path) -> None:
    cache = ContentCache(tmp_path)
    cache.add(span(0, 10), values(1, 2))
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    cache.add(span(0, 20), {key(1): np.full(3, 7, np.float32)})
    assert all(path.read_bytes() == content for path, content in before.items())
    first = sorted(tmp_path.iterdir())[0]
    assert first in before
    assert cache.find(span(5), {key(1)})[key(1)][0] == 1
    cache.add(span(0, 10), {key(1): np.full(3, 8, np.float32), key(2): np.full(3, 8, np.float32)})
    assert all(path.read_bytes() == content for path, content in before.items())


def test_numbers_that_are_none_are_not_remembered(tmp_path: Path) -> None:
    cache = ContentCache(tmp_path)
    cache.add(span(0), {key(1): np.array([np.nan], np.float32)})
    assert list(tmp_path.iterdir()) == []


def test_scraps_of_a_killed_writer_do_not_count(tmp_path: Path) -> None:
    cache = ContentCache(tmp_path)
    cache.add(span(0), values(1))
    (path,) = tmp_path.iterdir()
    path.rename(tmp_path / f".{path.name}.0123.tmp")
    assert cache.find(span(0), {key(1)}) == {}


def test_forgetting_removes_the_entry_everywhere(tmp_path: Path) -> None:
    cache = ContentCache(tmp_path)
    cache.add(span(0, 10), values(1, 2))
    cache.add(span(5, 6), values(1))
    assert cache.forget(span(5), {key(1)}) == 2
    assert cache.find(span(5), {key(1), key(2)}).keys() == {key(2)}
    assert len(list(tmp_path.iterdir())) == 1
