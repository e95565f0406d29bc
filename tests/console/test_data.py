"""The log of a job in a real browser: its numbers, and the rows that were refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import httpx


def test_a_log_is_told_and_its_refused_rows_are_text(site: Any, new_page: Callable[..., Any]) -> None:
    page = new_page()
    page.goto(f"{site.url}/#/data")
    page.get_by_text("There is no job yet.").wait_for()
    asked = {"model": "bot@prod", "training_file": "feedback", "suffix": "bot"}
    reply = httpx.post(f"{site.url}/v1/fine_tuning/jobs", json=asked, timeout=30)
    page.reload()
    page.get_by_text("60 (97 %)").wait_for()
    page.get_by_role("row", name="2025-06").first.wait_for()
    page.get_by_role("img", name="Share of thumbs up in").wait_for()
    page.get_by_text("The busiest user gave").wait_for()
    page.get_by_text("{<script>alert(4)</script>").wait_for()
    page.get_by_label("Reason").select_option("unknown_label")
    page.get_by_text("{<script>alert(4)</script>").wait_for(state="detached")
    page.get_by_text("<img src=x onerror=alert(3)>").wait_for()
    assert page.locator("main img, main script").count() == 0
    assert page.get_by_label("The log of job").input_value() == reply.json()["id"]


def test_the_keyboard_goes_from_log_to_log(site: Any, new_page: Callable[..., Any]) -> None:
    with httpx.Client(base_url=site.url, timeout=30) as http:
        for _ in range(2):
            http.post("/v1/fine_tuning/jobs", json={"model": "bot@prod", "training_file": "feedback", "suffix": "bot"})
        ids = [job["id"] for job in http.get("/v1/fine_tuning/jobs").json()["data"]]
    page = new_page()
    page.goto(f"{site.url}/#/data")
    page.get_by_label("The log of job").focus()
    for shown in ids[1:3]:
        page.keyboard.press("ArrowDown")
        page.wait_for_url(f"**/#/data/{shown}")
        assert page.evaluate("document.activeElement.tagName") == "SELECT"
        assert page.get_by_label("The log of job").input_value() == shown
