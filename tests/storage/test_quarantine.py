"""The books of a stage."""

from pathlib import Path

from bco_ray.storage.quarantine import Quarantine, Refused, refused_rows


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


def test_refused_rows_are_listed_page_by_page_through_all_stages(tmp_path: Path) -> None:
    for stage, first, reasons in (("import", 0, "ab"), ("import", 9, "ba"), ("settle", 0, "a")):
        rows = [refused(first + n, reason) for n, reason in enumerate(reasons)]
        Quarantine(tmp_path / stage).write(("f", first), 9, rows)
    everything, more = refused_rows([tmp_path, tmp_path / "none"])
    assert ([one.stage for one in everything], more) == (["import"] * 4 + ["settle"], False)
    pages, after, more = list[Refused](), ("", -1), True
    while more:
        found, more = refused_rows([tmp_path], after=after, limit=2)
        pages += found
        name, _, row = pages[-1].id.rpartition(":")
        after = name, int(row)
    assert pages == everything
    assert [one.row["reason"] for one in refused_rows([tmp_path], reason="a")[0]] == ["a"] * 3
