"""What a cluster lacks, in words, and that somebody hears of it while work runs. No cluster is started."""

from __future__ import annotations

import threading

import pytest
import ray

from bco_ray.pipeline import waiting
from bco_ray.pipeline.waiting import looking_out, words_for

CPU, GPU = {"CPU": 1.0}, {"CPU": 1.0, "GPU": 1.0}


@pytest.mark.parametrize(
    ("wanted", "machines", "words"),
    [
        ([], [], None),
        ([CPU], [], "a machine with 1 CPU"),
        ([CPU], [{"memory": 1.0}], "a machine with 1 CPU"),
        ([CPU, GPU], [{"CPU": 4.0}, {"CPU": 4.0}], "a machine with 1 CPU, 1 GPU"),
        ([{"CPU": 4.0, "spot": 0.001}], [{"CPU": 8.0, "GPU": 1.0}], "a machine with 4 CPU, 0.001 spot"),
        ([CPU] * 9, [{"CPU": 1.0}], None),  # busy, not missing
    ],
)  # fmt: skip
def test_what_fits_no_machine_is_lacking(
    wanted: list[dict[str, float]], machines: list[dict[str, float]], words: str | None
) -> None:
    assert words_for(wanted, machines) == words


def test_it_is_told_again_and_again_also_after_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waiting, "LOOK_SECONDS", 0.001)
    heard: list[str | None] = []
    enough = threading.Event()
    answers = iter([ray.exceptions.RayError("no head"), "a machine with 1 GPU", None])

    def ask() -> str | None:
        answer = next(answers, None)
        if isinstance(answer, Exception):
            raise answer
        return answer

    def told(what: str | None) -> None:
        heard.append(what)
        if len(heard) == 2:
            enough.set()

    with looking_out(told, ask):
        assert enough.wait(30)
    assert heard[:2] == ["a machine with 1 GPU", None]
    threads = {thread.name for thread in threading.enumerate()}
    assert "waiting" not in threads
