"""The import stage: what becomes of names, of scores and of text that no file can hold; without a cluster."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa

from bco_ray.config.spec import DEFAULT_LABEL_MAP
from bco_ray.feedback.importing import ImportStage
from bco_ray.feedback.joining import JoinStage
from bco_ray.schema import LINES
from bco_ray.storage.quarantine import Quarantine
from bco_ray.storage.salt import hash_user

SALT = b"0123456789abcdef"


def run(tmp_path: Path, rows: list[Any], format_: str = "canonical", **options: Any) -> tuple[pa.Table, list[Any]]:
    """(what is passed on, refused rows)."""
    stage = ImportStage(Quarantine(tmp_path / "q"), {"f": format_}, None, None, DEFAULT_LABEL_MAP, 3, SALT, **options)
    raws = [row if isinstance(row, bytes) else json.dumps(row).encode() for row in rows]
    lines = pa.table([["f"] * len(raws), range(len(raws)), raws, [None] * len(raws)], schema=LINES)
    return pa.concat_tables(stage(lines)), Quarantine(tmp_path / "q").examples(100)


def row(**fields: Any) -> dict[str, Any]:
    return {"prompt": "Hi", "completion": "Hello!", "label": True, **fields}


def test_names_leave_as_pseudonyms_also_to_quarantine(tmp_path: Path) -> None:
    kept, refused = run(tmp_path, [row(user="ann@x.org"), row(user="ann@x.org", label="odd"), row(user="Zoë", tags=1)])
    assert kept["user"].to_pylist() == [hash_user("ann@x.org", SALT)]
    assert [r["reason"] for r in refused] == ["unknown_label", "invalid_field"]
    assert all(b"ann@x.org" not in r["raw"] and b"Zo" not in r["raw"] for r in refused)
    assert hash_user("ann@x.org", SALT).encode() in refused[0]["raw"]


def test_nothing_is_kept_of_who_is_erased(tmp_path: Path) -> None:
    erased = frozenset({hash_user("ann", SALT), "fb-7"})
    bad = [row(user="ann", label="odd"), row(id="fb-7", label="odd"), row(user="bob", label="odd")]
    _, refused = run(tmp_path, bad, erased=erased)
    assert [bool(r["raw"]) for r in refused] == [False, False, True]


def test_only_the_score_that_is_asked_for(tmp_path: Path) -> None:
    scores = [row(metadata={"score": name}) for name in ("thumb", "toxic")] + [row()]
    kept, refused = run(tmp_path, scores, score="thumb")
    assert kept.num_rows == 2
    assert [r["reason"] for r in refused] == ["other_score"]


def test_half_characters_are_refused_wherever_they_hide(tmp_path: Path) -> None:
    inner = json.dumps({"messages": [{"role": "user", "content": "\ud800"}]})
    answer = {"id": "c1", "object": "chat.completion", "request": inner,
              "choices": [{"index": 0, "message": {"role": "assistant", "content": "a"}}]}  # fmt: skip
    for bad, format_ in ((answer, "responses-votes"), (row(user="\ud800"), "canonical")):
        kept, refused = run(tmp_path / format_, [bad], format_)
        assert kept.num_rows == 0
        assert [r["reason"] for r in refused] == ["invalid_text"]


def test_who_asked_may_be_erased_too(tmp_path: Path) -> None:
    answer = {"id": "c1", "object": "chat.completion", "choices": [{"message": {"content": "a"}}],
              "request": {"messages": [{"role": "user", "content": "secret"}], "user": "ann"}}  # fmt: skip
    rating = {"response_id": "c1", "rating": "up", "user": "bob"}
    halves, _ = run(tmp_path, [answer, rating], "responses-votes")
    assert halves.num_rows == 2
    erased = frozenset({hash_user("ann", SALT)})
    joined = pa.concat_tables(JoinStage(Quarantine(tmp_path / "j"), 3, erased)(halves))
    (refused,) = Quarantine(tmp_path / "j").examples(9)
    assert joined.num_rows == 0
    assert refused["reason"] == "erased"
    assert b"secret" not in refused["raw"]
    assert pa.concat_tables(JoinStage(Quarantine(tmp_path / "k"), 3)(halves)).num_rows == 1
