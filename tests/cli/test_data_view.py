"""What a check says on a terminal: everything, in 100 columns, without colour, and no word of the log is markup."""

import json

import pytest
from rich.console import Console

from bco_ray.cli.data_view import show_check
from bco_ray.feedback.statistics import LogSums
from bco_ray.pipeline.report import CheckResult
from bco_ray.schema import SETTLED

HOSTILE = "[bold red]no[/] \x1b[2J\u202e" + "x" * 300


def vote(n, **fields):
    base = dict.fromkeys(SETTLED.names) | {"file": "f", "position": n, "entry": 0, "id": str(n), "prompt_hash": n % 60}
    base |= {"weight": 1.0, "tags": [], "siblings": [], "metadata": "{}", "user": f"u{n % 30}", "label": n % 4 > 0}
    base["prompt"] = base["completion"] = json.dumps([{"role": "user", "content": "some words"}])
    return base | fields


def shown(votes, width=140, examples=None, answers=None, **drops):
    console = Console(width=width, record=True, force_terminal=False, file=open("/dev/null", "w"))  # noqa: SIM115, PTH123
    result = CheckResult(
        files=[],
        read=len(votes) + sum(drops.values()),
        kept=len(votes),
        drops=drops,
        statistics=LogSums.of(votes).summary(),
        answers=answers or {},
        examples=examples or {},
    )
    show_check(result, console, ["From the model. Way out."])
    return console.export_text()


VOTES = [
    vote(n, source=f"site{n % 10}", model=HOSTILE if n % 2 else "bot/1", created_at=1.7e9 + n * 1e5, comment="c",
         response_id=str(n % 50), prompt_hash=n % 50)
    for n in range(400)
]  # fmt: skip


def test_it_tells_the_whole_story():
    example = {"file": "log.jsonl", "position": 17, "detail": "label 'meh' is not in the map", "raw": "{}"}
    text = shown(VOTES, examples={"unknown_label": [example]}, answers={"voted": 99}, unknown_label=3, neutral=5)
    words = " ".join(text.split())
    for part in (
        "400 of 408 votes kept, 75.0% thumbs-up",
        "read 408 dropped: neutral -5 1.2% dropped: unknown_label -3 0.7% kept 400 98.0%",
        "answers logged apart: voted 99",
        "unknown_label, for example log.jsonl:17: label 'meh' is not in the map",
        "site0 40 20 20 50.0%",
        "(2 more)",
        "2025-01",
        "answer, thumbs-up 10 10 10 10",
        "users 30 (of 400 votes that name one)",
        "agreement on an answer",
        "with comment 400 votes",
        "hint: From the model. Way out. Usable for training.",
    ):
        assert part in words


@pytest.mark.parametrize("width", [100, 140, 60])
def test_it_fits_and_text_from_the_log_is_only_text(width):
    examples = {HOSTILE: [{"file": HOSTILE, "position": 1, "detail": HOSTILE, "raw": HOSTILE}]}
    text = shown(VOTES, width=width, examples=examples, **{HOSTILE: 80})
    assert max(len(line.rstrip()) for line in text.splitlines()) <= min(width, 100)
    assert "[bold red]no[/]" in "".join(text.split("\n")) or width == 60
    assert "\x1b" not in text
    assert "\u202e" not in text


def test_problems_come_last_and_say_the_way_out():
    lines = shown([], unknown_label=40).split("\n")
    text = " ".join(" ".join(lines).split())
    assert "problem: None of the 40 votes can be used" in text
    assert "data.label_map" in text
    assert [line for line in lines if line.strip()][-1].strip() == "Not usable for training."


def test_a_log_without_names_shows_no_empty_tables():
    words = shown([vote(n, user=None) for n in range(200)])
    assert "source" not in words
    assert "votes per user" not in words
    assert "hint: Only 50 thumbs-down" in words
