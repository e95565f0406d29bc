"""The mixture of a round: which older votes are drawn, and what votes count by age and author."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from bco_ray.errors import DataError
from bco_ray.schema import Record
from bco_ray.scoring import mixing_passes
from bco_ray.scoring.matching_passes import in_process
from bco_ray.scoring.mixing import DAY_SECONDS, Mixing, Mixture, least_bin, uniform, wanted_older
from bco_ray.scoring.mixing_passes import mix
from bco_ray.scoring.shards import write_table
from bco_ray.testing.records import settled

Make = Callable[..., Record]
OLD, NEW = "old.parquet", "new.parquet"
TODAY = 1_700_000_000.0


@pytest.fixture(autouse=True)
def no_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    """Many parts would go to Ray, which starts a cluster where there is none."""
    monkeypatch.setattr(mixing_passes, "each_of", lambda _: in_process)


def log(record: Make, *, new: int, old: int, old_days: Callable[[int], float] = lambda n: 10.0) -> dict[str, pa.Table]:
    """New votes of today on bot/2, older ones on bot/1; every other one is up."""

    def votes(count: int, name: str, model: str, days: Callable[[int], float]) -> list[Record]:
        return [
            record(
                f"{name} {n}", id=f"{name}{n}", model=model, label=n % 2 == 0, created_at=TODAY - days(n) * DAY_SECONDS
            )
            for n in range(count)
        ]

    newer = settled(votes(new, "n", "bot/2", lambda n: 0.0), NEW)
    return {NEW: newer, OLD: settled(votes(old, "o", "bot/1", old_days), OLD)}


def parts_of(directory: Path, tables: Sequence[pa.Table], count: int = 1) -> list[Path]:
    """The rows of all, dealt to so many parts."""
    rows = pa.concat_tables(tables)
    parts = [directory / f"part-{n}-of-{count}.parquet" for n in range(count)]
    for n, part in enumerate(parts):
        write_table(part, rows.take(pa.array(range(n, rows.num_rows, count), pa.int64())))
    return parts


def ids(rows: pa.Table) -> set[str]:
    return set(rows["id"].to_pylist())


def weights(rows: pa.Table) -> dict[str, float]:
    return dict(zip(rows["id"].to_pylist(), rows["weight"].to_pylist(), strict=True))


def mixing(**changes: Any) -> Mixing:
    return Mixing(
        **({"older": 0.25, "older_files": frozenset({OLD}), "policy": "bot/2", "salt": "feedback:1..2"} | changes)
    )


def test_without_settings_all_votes_are_in_bit_for_bit(tmp_path: Path, record: Make) -> None:
    rows = settled([record(f"q{n}", id=str(n), weight=0.1 * n) for n in range(5)])
    mixed, left_out = Mixture()(rows)
    assert mixed is rows
    assert left_out == []
    mixture, found = mix(Mixing(), parts_of(tmp_path, [rows]), 0.0)
    assert mixture == Mixture()
    assert (found["votes"], found["older_votes"], found["off_policy"]) == (5, 0, None)
    assert found["ess_fraction"] == {"chosen": 1.0, "rejected": None}


def test_older_votes_are_the_share_asked_for_and_the_books_balance(tmp_path: Path, record: Make) -> None:
    tables = log(record, new=300, old=2000)
    mixture, found = mix(mixing(), parts_of(tmp_path, list(tables.values())), 0.0)
    assert (found["votes"], found["older_votes"], found["older_not_drawn"]) == (400, 100, 1900)
    drawn, left_out = mixture(tables[OLD])
    assert (drawn.num_rows, len(left_out)) == (100, 1900)
    assert {row["reason"] for row in left_out} == {"not_drawn"}
    assert drawn["weight"].to_pylist() == [1.0] * 100
    assert mixture(tables[NEW])[0].equals(tables[NEW])
    ups = sum(drawn["label"].to_pylist())
    assert 30 < ups < 70


@pytest.mark.parametrize("count", [3, 7])
def test_what_is_drawn_does_not_depend_on_how_the_log_is_cut(tmp_path: Path, record: Make, count: int) -> None:
    tables = list(log(record, new=60, old=500, old_days=lambda n: n / 10).values())
    asked = mixing(half_life_days=7.0, off_policy_weight=0.5)
    whole, said = mix(asked, parts_of(tmp_path, tables), 0.2)
    cut, same = mix(asked, parts_of(tmp_path, tables, count), 0.2)
    assert (cut.least_bin, cut.newest) == (whole.least_bin, whole.newest)
    assert cut.chosen_mean == pytest.approx(whole.chosen_mean, rel=1e-12)
    assert same["by_version"][0]["rows"] == said["by_version"][0]["rows"]
    rows = pa.concat_tables(tables)
    backwards = rows.take(pa.array(range(rows.num_rows - 1, -1, -1)))
    assert ids(whole(rows)[0]) == ids(cut(backwards)[0])


def test_another_round_draws_others_and_few_are_all_taken(tmp_path: Path, record: Make) -> None:
    tables = log(record, new=300, old=400)
    parts = parts_of(tmp_path, list(tables.values()))
    first, again, other = (ids(mix(mixing(salt=salt), parts, 0.0)[0](tables[OLD])[0]) for salt in ("a", "a", "b"))
    assert first == again
    assert 5 < len(first & other) < 60  # 25 by chance
    mixture, found = mix(mixing(older=0.9), parts, 0.0)
    assert (mixture.least_bin, found["older_votes"], found["older_not_drawn"]) == (None, 400, 0)


def test_newer_ones_are_preferred_by_half_life_and_age_counts_once(tmp_path: Path, record: Make) -> None:
    tables = log(record, new=500, old=4000, old_days=lambda n: 30.0 if n < 2000 else 60.0)
    mixture, _ = mix(mixing(older=0.5, half_life_days=30.0), parts_of(tmp_path, list(tables.values())), 0.0)
    drawn, _ = mixture(tables[OLD])
    newer = sum(int(name[1:]) < 2000 for name in ids(drawn))
    assert newer / (500 - newer) == pytest.approx(2, rel=0.25)  # one half-life apart
    assert set(mixture.factors(drawn)) == {1.0}
    assert set(mixture.factors(tables[NEW])) == {1.0}


def test_where_all_older_ones_are_taken_age_is_in_the_weights(tmp_path: Path, record: Make) -> None:
    tables = log(record, new=100, old=50, old_days=lambda n: 20.0)
    mixture, found = mix(mixing(older=0.5, half_life_days=10.0), parts_of(tmp_path, list(tables.values())), 0.0)
    rows, _ = mixture(pa.concat_tables(list(tables.values())))
    by_id = weights(rows)
    assert by_id["o0"] / by_id["n0"] == pytest.approx(0.25)
    labels = np.array(rows["label"].to_pylist())
    for label in (True, False):
        assert np.array(rows["weight"])[labels == label].mean() == pytest.approx(1)
    assert found["ess_fraction"]["chosen"] == pytest.approx((50 + 25 / 4) ** 2 / (75 * (50 + 25 / 16)))


def test_age_is_measured_from_the_newest_vote_of_the_data(tmp_path: Path, record: Make) -> None:
    days = [0.0, 7.0, 14.0]
    votes = [record(f"q{n}", id=str(n), created_at=TODAY - d * DAY_SECONDS, weight=2.0) for n, d in enumerate(days)]
    changed = record("q3", id="3", created_at=TODAY - 90 * DAY_SECONDS, updated_at=TODAY, weight=2.0)
    rows = settled([*votes, changed, record("q4", id="4", weight=2.0)])
    mixture, found = mix(Mixing(half_life_days=7.0), parts_of(tmp_path, [rows]), 0.0)
    assert mixture.factors(rows).tolist() == pytest.approx([1, 0.5, 0.25, 1, 1])
    assert found["undated_votes"] == 1
    assert sum(weights(mixture(rows)[0]).values()) == pytest.approx(10)


def test_off_policy_votes_count_less_and_are_told(tmp_path: Path, record: Make) -> None:
    models = ["bot/2", "bot/2", "bot/1", None]
    rows = settled([record(f"q{n}", id=str(n), model=model) for n, model in enumerate(models)])
    parts = parts_of(tmp_path, [rows])
    mixture, found = mix(Mixing(policy="bot/2", off_policy_weight=0.5), parts, 0.0)
    by_id = weights(mixture(rows)[0])
    assert by_id["2"] == by_id["3"] == by_id["0"] / 2 == pytest.approx(2 / 3)
    assert found["off_policy"] == pytest.approx({"rows": 0.5, "weight": 1 / 3, "of_named": 1 / 3})
    assert [(row["model"], row["rows"]) for row in found["by_version"]] == [("bot/2", 2), (None, 1), ("bot/1", 1)]
    assert mix(Mixing(policy="bot/2"), parts, 0.0)[1]["off_policy"]["weight"] == 0.5
    assert mix(Mixing(), parts, 0.0)[1]["off_policy"] is None


def test_only_train_rows_are_reckoned(tmp_path: Path, record: Make) -> None:
    rows = settled([record(f"q{n}", id=str(n), model=f"bot/{1 + n % 2}") for n in range(200)])
    _, found = mix(Mixing(policy="bot/1"), parts_of(tmp_path, [rows]), 0.5)
    assert found["votes"] == 200
    assert 60 < sum(row["rows"] for row in found["by_version"]) < 140


def test_a_wrong_date_that_leaves_nothing_is_refused(tmp_path: Path, record: Make) -> None:
    far = record("far", id="far", label=False, created_at=TODAY + 3000 * DAY_SECONDS)
    rows = settled([record("q", id="q", created_at=TODAY), far])
    with pytest.raises(DataError, match="rounds.half_life_days: .* a vote with a wrong date"):
        mix(Mixing(half_life_days=1.0), parts_of(tmp_path, [rows]), 0.0)


def test_an_empty_part_is_no_trouble(tmp_path: Path, record: Make) -> None:
    tables = log(record, new=4, old=8)
    parts = parts_of(tmp_path, list(tables.values()), count=20)
    mixture, found = mix(mixing(half_life_days=3.0), parts, 0.0)
    assert found["votes"] == 5
    assert mixture(tables[NEW].slice(0, 0))[0].num_rows == 0


def test_the_draws_numbers() -> None:
    assert [wanted_older(1000, share) for share in (0.0, 0.25, 0.5, 0.9)] == [0, 333, 1000, 9000]
    assert least_bin({5: 2, 3: 1, -4: 7}, 3) == 3
    assert least_bin({5: 2, 3: 1, -4: 7}, 10) is None
    assert least_bin({5: 2}, 0) == 6
    assert least_bin({}, 0) is None
    spread = uniform([str(n) for n in range(4000)], "s")
    assert 0 < spread.min() < spread.max() <= 1
    assert spread.mean() == pytest.approx(0.5, abs=0.02)
