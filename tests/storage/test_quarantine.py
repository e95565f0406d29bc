"""The books of a stage."""

from pathlib import Path

from bco_ray.storage.quarantine import Quarantine


def refused(position: int, reason: str) -> dict[str, object]:
    return {"file": "f", "position": position, "reason": reason, "detail": "why", "raw": b"\xff"}


def test_batches_add_up_and_a_retry_counts_once(tmp_path: Path) -> None:
    books = Quarantine(tmp_path / "q")
    assert books.tally().read == 0
    books.write(("f", 0), 10, [refused(3, "too_long"), refused(4, "empty")])
    books.write(("f", 10), 5, [])
    books.write(("f", 10), 5, [refused(12, "empty")])  # the same batch, retried
    tally = books.tally()
    assert (tally.read, tally.kept, tally.drops) == (15, 12, {"empty": 2, "too_long": 1})
    assert len(books.examples(2)) == 2
    assert books.examples(9)[0]["raw"] == b"\xff"
