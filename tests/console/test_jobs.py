"""Jobs in a real browser: from the form to the registered version, and what can be done on the way."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

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


def test_pause_resume_cancel_retry(site: Any, new_page: Callable[..., Any]) -> None:
    site.trainer.hold.clear()
    page = new_page()
    fill(page, site, suffix="steered")
    create(page)
    status(page, "running")
    for verb, then in (("Pause", "paused"), ("Resume", "running"), ("Cancel", "cancelled")):
        page.get_by_role("button", name=verb, exact=True).click()
        page.get_by_role("button", name=f"Yes, {verb.lower()}").click()
        status(page, then)
    before = page.url
    page.get_by_role("button", name="Retry", exact=True).click()
    page.get_by_role("dialog").wait_for()
    page.keyboard.press("Escape")
    page.get_by_role("dialog").wait_for(state="detached")
    assert page.evaluate("document.activeElement.textContent") == "Retry"
    page.get_by_role("button", name="Retry", exact=True).click()
    page.get_by_role("button", name="Yes, retry").click()
    page.wait_for_url(lambda url: url != before)
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
