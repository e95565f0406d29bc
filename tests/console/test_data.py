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
    page.get_by_role("row", name="week of 2025-06-16").first.wait_for()
    page.get_by_role("img", name="Share of thumbs up in 16 weeks").wait_for()
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


def created(site: Any) -> Any:
    asked = {"model": "bot@prod", "training_file": "feedback", "suffix": "bot"}
    return httpx.post(f"{site.url}/v1/fine_tuning/jobs", json=asked, timeout=30).json()


def test_a_report_is_followed_until_the_job_has_ended(site: Any, new_page: Callable[..., Any]) -> None:
    site.trainer.hold.clear()
    job, page = created(site), new_page()
    page.goto(f"{site.url}/#/jobs/{job['id']}")
    page.get_by_role("link", name="What its log turned out to be").click()
    page.locator(".badge.is-running").wait_for()
    page.get_by_text("Known once the job has succeeded.").wait_for()
    site.trainer.hold.set()
    page.locator(".badge.is-succeeded").wait_for()
    page.get_by_text("with AUC 0.61 (0.55 to 0.67)").wait_for()


def test_a_job_that_ended_before_its_log_was_read_says_why(site: Any, new_page: Callable[..., Any]) -> None:
    site.trainer.reads = False
    site.trainer.hold.clear()
    job, page = created(site), new_page()
    path = f"/v1/fine_tuning/jobs/{job['id']}"
    page.goto(f"{site.url}/#/data/{job['id']}")
    page.get_by_text("Its log has not been read yet.").wait_for()
    assert httpx.post(f"{site.url}{path}/cancel", timeout=30).is_success
    page.get_by_text("Its log was not read before the job was cancelled.").wait_for()
    error = {"code": "data_error", "message": "logs/a.jsonl: <b>no</b> such file.", "param": None}
    page.route(f"**{path}", lambda route: route.fulfill(json={**job, "status": "failed", "error": error}))
    page.reload()
    page.get_by_role("alert").filter(has_text="data_error: logs/a.jsonl: <b>no</b> such file.").wait_for()
    page.get_by_text("Its log was not read before the job failed.").wait_for()
    site.trainer.reads = True
    site.trainer.hold.set()


def test_what_is_wrong_with_a_report_is_not_that_it_is_unread(site: Any, new_page: Callable[..., Any]) -> None:
    page = new_page()
    page.goto(f"{site.url}/#/data/ftjob-nope")
    page.get_by_role("alert").filter(has_text="ftjob-nope").wait_for()
    assert page.get_by_text("has not been read").count() == 0


def test_older_jobs_can_be_picked(site: Any, new_page: Callable[..., Any]) -> None:
    one = created(site)
    jobs = [{**one, "id": f"ftjob-{n}", "user_provided_suffix": f"job-{n}"} for n in range(70)]

    def listed(route: Any) -> None:
        query = httpx.URL(route.request.url).params
        start = [job["id"] for job in jobs].index(query["after"]) + 1 if "after" in query else 0
        data = jobs[start : start + int(query["limit"])]
        route.fulfill(json={"data": data, "has_more": data[-1] != jobs[-1], "last_id": data[-1]["id"]})

    page = new_page()
    page.route("**/v1/fine_tuning/jobs?*", listed)
    page.goto(f"{site.url}/#/data/{one['id']}")
    page.get_by_role("option", name="job-49").wait_for(state="attached")
    assert page.get_by_role("option", name="job-69").count() == 0
    page.get_by_role("button", name="Older jobs").click()
    page.get_by_role("option", name="job-69").wait_for(state="attached")
    page.get_by_role("button", name="Older jobs").wait_for(state="detached")
    assert page.evaluate("document.activeElement.tagName") == "SELECT"


def test_a_row_of_which_only_the_beginning_is_shown_says_so(site: Any, new_page: Callable[..., Any]) -> None:
    row = {
        "id": "import/a:0", "object": "quarantine.row", "stage": "import", "reason": "unknown_label", "detail": None,
        "file": "a.jsonl", "position": 0, "raw": "x" * 4000,
    }  # fmt: skip
    rows = [{**row, "truncated": True}, {**row, "id": "import/a:1", "raw": "whole", "truncated": False}]
    job, page = created(site), new_page()
    page.route("**/quarantine*", lambda route: route.fulfill(json={"data": rows, "has_more": False, "last_id": None}))
    page.goto(f"{site.url}/#/data/{job['id']}")
    page.locator("article", has_text="xxx").get_by_text("the row goes on").wait_for()
    assert page.locator("article", has_text="whole").get_by_text("the row goes on").count() == 0
