"""Jobs in a real browser: from the form to the registered version, and what can be done on the way."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx

ESTIMATE_SECONDS = 240
XSS = '<img src=x onerror="alert(1)">'


def votes(path: Path) -> Path:
    rows = ({"prompt": f"q{n}", "completion": "yes", "label": bool(n % 2)} for n in range(20))
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def fill(page: Any, site: Any, **fields: str) -> None:
    page.goto(f"{site.url}/#/jobs/new")
    page.get_by_label("Model", exact=True).fill("bot@prod")
    for label, text in {"Votes": "feedback", **fields}.items():
        page.get_by_label(label, exact=True).first.fill(text)


def create(page: Any) -> None:
    page.get_by_role("button", name="Create the job").click()


def status(page: Any, name: str) -> None:
    page.get_by_role("region", name="How it stands").locator(".badge", has_text=name).wait_for()


def test_from_the_form_to_the_registered_version(site: Any, new_page: Callable[..., Any], tmp_path: Path) -> None:
    site.trainer.hold.clear()
    page = new_page()
    page.goto(f"{site.url}/#/jobs")
    page.get_by_text("No job yet").wait_for()
    page.get_by_role("link", name="New job").click()
    page.get_by_label("Model", exact=True).fill("bot@prod")
    page.get_by_label("Upload a file of votes").set_input_files(votes(tmp_path / f"{XSS[:12]}.jsonl"))
    page.get_by_text("<img src=x o.jsonl").first.wait_for(state="attached")
    page.get_by_label("suffix").fill("bot")
    page.get_by_label("beta", exact=True).first.fill("0.3")
    page.get_by_label("metadata").fill(json.dumps({"team": XSS}))
    page.get_by_text("Every other setting").click()
    page.get_by_label("max length").fill("64")
    create(page)
    status(page, "running")
    page.get_by_role("img", name="Loss over").wait_for()
    page.get_by_text("train 43 %").wait_for()
    assert page.locator(".plot canvas").count() == 4
    site.trainer.hold.set()
    status(page, "succeeded")
    page.get_by_role("img", name=f"Loss over {16} steps").wait_for()
    page.get_by_text("attempt 1 <b>of</b> 64").wait_for()
    page.get_by_role("region", name="Checkpoints").get_by_role("rowheader", name="8").wait_for()
    page.get_by_text("The job has successfully completed.").wait_for()
    page.get_by_text(XSS).first.wait_for()
    assert page.locator("main img, main b").count() == 0
    made = site.registry.get("bot", 3)
    assert page.get_by_role("link", name=made.reference).is_visible()
    page.goto(f"{site.url}/#/jobs")
    page.get_by_role("row", name="bot succeeded").get_by_text(f"team={XSS}").wait_for()


def jobs_of(site: Any) -> list[Any]:
    return list(httpx.get(f"{site.url}/v1/fine_tuning/jobs", params={"limit": 100}, timeout=30).json()["data"])


def answered_by_nobody(route: Any) -> None:
    """The server has done it, and the network lost the answer."""
    route.fetch()
    route.abort()


def test_pause_resume_cancel_retry(site: Any, new_page: Callable[..., Any]) -> None:
    site.trainer.hold.clear()
    page = new_page()
    fill(page, site, suffix="steered")
    create(page)
    status(page, "running")
    steps = (("Pause", "paused", "Resume"), ("Resume", "running", "Pause"), ("Cancel", "cancelled", "Retry"))
    for verb, then, has_focus in steps:
        page.get_by_role("button", name=verb, exact=True).click()
        page.get_by_role("button", name=f"Yes, {verb.lower()}").click()
        status(page, then)
        page.get_by_role("button", name=has_focus, exact=True).wait_for()
        page.wait_for_function(f"document.activeElement.textContent.startsWith('{has_focus}')")
    before = page.url
    page.get_by_role("button", name="Retry", exact=True).click()
    page.get_by_role("dialog").wait_for()
    page.keyboard.press("Escape")
    page.get_by_role("dialog").wait_for(state="detached")
    assert page.evaluate("document.activeElement.textContent") == "Retry"
    page.get_by_role("button", name="Retry", exact=True).click()
    count = len(jobs_of(site))
    page.route("**/retry", answered_by_nobody)
    page.get_by_role("button", name="Yes, retry").click()
    page.get_by_role("dialog").get_by_role("alert").filter(has_text="The server does not answer").wait_for()
    page.unroute("**/retry")
    page.get_by_role("button", name="Yes, retry").dblclick()
    page.wait_for_url(lambda url: url != before)
    assert len(jobs_of(site)) == count + 1
    page.get_by_text("Goes on from").wait_for()
    site.trainer.hold.set()
    status(page, "succeeded")


def test_what_does_not_fit_is_said_beside_the_field(site: Any, new_page: Callable[..., Any]) -> None:
    page = new_page()
    fill(page, site, **{"Model": "", "beta": "-1"})
    create(page)
    page.get_by_text("Name a model.").wait_for()
    beta = page.get_by_label("beta", exact=True).first
    assert beta.get_attribute("aria-invalid") == "true"
    page.get_by_text("A number, above 0, or auto.").wait_for()
    fill(page, site, **{"Votes": f"file-{'0' * 24}", "beta": ""})
    create(page)
    page.get_by_role("alert").filter(has_text="no such file").wait_for()
    assert page.get_by_label("Votes", exact=True).get_attribute("aria-invalid") == "true"


def test_a_field_that_does_not_fit_is_not_hidden(site: Any, new_page: Callable[..., Any]) -> None:
    """Whether the page finds it or the server does."""
    page = new_page()
    fill(page, site)
    settings = page.get_by_role("group", name="training", exact=True)
    for label, text, says in (
        ("max length", "-1", "A whole number, at least"),
        ("num workers", "[4, 2]", "num_workers"),
    ):
        page.get_by_text("Every other setting").click()
        settings.get_by_label(label, exact=True).fill(text)
        page.get_by_text("Every other setting").click()
        create(page)
        settings.locator(".wrong", has_text=says).wait_for()
        field = settings.get_by_label(label, exact=True)
        assert field.get_attribute("aria-invalid") == "true"
        page.wait_for_function("document.activeElement.getAttribute('aria-invalid') === 'true'")
        field.fill("")
        assert field.get_attribute("aria-invalid") is None
        page.get_by_text("Every other setting").click()


def test_a_job_by_a_name_that_is_markup_is_refused_as_text(site: Any, new_page: Callable[..., Any]) -> None:
    page = new_page()
    fill(page, site, **{"Model": XSS, "suffix": XSS})
    create(page)
    page.get_by_text("Letters, digits, dots").wait_for()
    page.get_by_label("suffix", exact=True).fill("")
    page.get_by_label("Votes", exact=True).fill(f"file-{XSS}")
    create(page)
    page.get_by_role("alert").filter(has_text=XSS).wait_for()
    assert page.locator("main img").count() == 0


def listed(jobs: list[Any]) -> Callable[[Any], None]:
    """A route of the browser's: pages of these, as the server would make them."""

    def answer(route: Any) -> None:
        query = httpx.URL(route.request.url).params
        ids = [job["id"] for job in jobs]
        start = ids.index(query["after"]) + 1 if "after" in query else 0
        end = start + int(query["limit"])
        data = jobs[start:end]
        route.fulfill(json={"data": data, "has_more": end < len(jobs), "last_id": data[-1]["id"] if data else None})

    return answer


def test_no_job_falls_between_two_pages_and_none_stays_as_it_was(site: Any, new_page: Callable[..., Any]) -> None:
    made = {"model": "bot@prod", "training_file": "feedback", "suffix": "bot"}
    one = httpx.post(f"{site.url}/v1/fine_tuning/jobs", json=made, timeout=30).json()
    jobs = [{**one, "id": f"ftjob-{n}", "user_provided_suffix": f"job-{n}", "status": "queued"} for n in range(50)]
    page = new_page()
    page.clock.install()
    page.route("**/v1/fine_tuning/jobs?*", listed(jobs))
    page.goto(f"{site.url}/#/jobs")
    page.get_by_role("button", name="Older jobs").click()
    page.get_by_role("link", name="job-39", exact=True).wait_for()
    jobs[39]["status"] = "succeeded"
    jobs[:0] = [
        {**one, "id": f"ftjob-new-{n}", "user_provided_suffix": f"new-{n}", "status": "queued"} for n in range(3)
    ]
    page.clock.run_for(5000)
    page.get_by_role("link", name="new-0", exact=True).wait_for()
    shown = page.get_by_role("rowheader").all_inner_texts()
    assert shown == [job["user_provided_suffix"] for job in jobs[:40]]
    page.get_by_role("button", name="Older jobs").click()
    page.get_by_role("row", name="job-39 succeeded").wait_for()
    page.get_by_role("link", name="job-49", exact=True).wait_for()
    assert page.get_by_role("button", name="Older jobs").count() == 0


def test_what_was_reckoned_for_another_form_is_not_shown(site: Any, new_page: Callable[..., Any]) -> None:
    found = {
        "rows": 20, "usable_rows": 20, "label_rate": 0.5, "exact": True, "tokens_per_row": 9, "trained_tokens": 180,
        "steps": 2, "parameters": 900, "trained_parameters": 90, "memory": {"total": 1e6}, "workers": 1, "seconds": 3.0,
        "gpu_hours": 4e-4, "basis": "a guess", "warnings": [],
    }  # fmt: skip
    page = new_page()
    fill(page, site)
    page.route("**/estimate", lambda route: route.fulfill(json=found))
    page.get_by_role("button", name="What would it take?").click()
    estimate = page.get_by_role("region", name="What it would take")
    estimate.get_by_text("1 s", exact=True).wait_for()
    page.get_by_label("beta", exact=True).first.fill("0.2")
    estimate.wait_for(state="detached")


def test_what_it_would_take(site: Any, new_page: Callable[..., Any], tmp_path: Path) -> None:
    page = new_page()
    page.set_default_timeout(ESTIMATE_SECONDS * 1000)  # a process of its own reckons
    fill(page, site)
    page.get_by_label("Upload a file of votes").set_input_files(votes(tmp_path / "votes.jsonl"))
    page.get_by_text("is votes.jsonl").wait_for()
    page.get_by_role("button", name="What would it take?").click()
    page.get_by_text("20 usable of 20").wait_for()
    page.get_by_text("50.0 %").wait_for()


def test_an_unknown_job_is_said_to_be_one(site: Any, new_page: Callable[..., Any]) -> None:
    page = new_page()
    page.goto(f"{site.url}/#/jobs/ftjob-nope")
    page.get_by_role("alert").filter(has_text="ftjob-nope").wait_for()


def test_what_is_not_there_and_what_has_ended_is_not_asked_for_again(site: Any, new_page: Callable[..., Any]) -> None:
    asked = {"model": "bot@prod", "training_file": "feedback", "suffix": "bot"}
    ended = httpx.post(f"{site.url}/v1/fine_tuning/jobs", json=asked, timeout=30).json()["id"]
    page, requests = new_page(), []
    page.on("request", lambda request: requests.append(request.url))
    page.goto(f"{site.url}/#/jobs/{ended}")
    status(page, "succeeded")
    page.get_by_role("button", name="Retry").wait_for()  # it is off the cluster
    page.clock.install()
    for address, says in ((f"jobs/{ended}", "Retry"), ("jobs/ftjob-nope", "Try again")):
        page.goto(f"{site.url}/#/models")
        page.get_by_role("link", name="bot", exact=True).wait_for()
        page.goto(f"{site.url}/#/{address}")
        page.get_by_role("button", name=says).wait_for()
        page.wait_for_load_state("networkidle")
        before = len(requests)
        page.clock.run_for(300_000)
        page.evaluate("fetch('/healthz').then((reply) => reply.status)")
        assert [url for url in requests[before:] if "/healthz" not in url] == []
