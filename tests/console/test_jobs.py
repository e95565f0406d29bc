"""Jobs in a real browser: from the form to the registered version, and what can be done on the way."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx

ESTIMATE_SECONDS = 240
XSS = '<img src=x onerror="alert(1)">'
FOUND = {
    "rows": 20, "usable_rows": 20, "label_rate": 0.5, "exact": True, "tokens_per_row": 9, "trained_tokens": 180,
    "steps": 2, "parameters": 900, "trained_parameters": 90, "memory": {"total": 1e6}, "workers": 1, "seconds": 3.0,
    "gpu_hours": 4e-4, "basis": "a guess", "warnings": [],
}  # fmt: skip


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
    told(page, "The job has succeeded: bot/3.")
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


def told(page: Any, text: str) -> None:
    """To a screen reader, wherever it is."""
    page.locator("[aria-live=polite]", has_text=text).wait_for(state="attached")


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
    page = new_page()
    fill(page, site)
    page.route("**/estimate", lambda route: route.fulfill(json=FOUND))
    page.get_by_role("button", name="What would it take?").click()
    estimate = page.get_by_role("region", name="What it would take")
    estimate.get_by_text("1 s", exact=True).wait_for()
    page.get_by_label("beta", exact=True).first.fill("0.2")
    estimate.wait_for(state="detached")


def test_an_estimate_that_comes_after_the_form_has_changed_is_not_shown(
    site: Any, new_page: Callable[..., Any]
) -> None:
    page, held = new_page(), list[Any]()

    def hold(route: Any) -> None:
        held.append(route)

    fill(page, site)
    page.route("**/estimate", hold)
    with page.expect_request("**/estimate"):
        page.get_by_role("button", name="What would it take?").click()
    page.get_by_role("button", name="Reckoning").wait_for()
    page.get_by_label("beta", exact=True).first.fill("0.2")
    held[0].fulfill(json=FOUND)
    told(page, "The form has changed since the estimate was asked for.")
    page.get_by_role("button", name="What would it take?").wait_for()
    assert page.get_by_role("region", name="What it would take").count() == 0


def test_while_a_file_is_on_its_way_nothing_is_created_and_the_focus_stays(
    site: Any, new_page: Callable[..., Any], tmp_path: Path
) -> None:
    page, held = new_page(), list[Any]()
    fill(page, site)
    page.route("**/v1/files", lambda route: held.append(route) if route.request.method == "POST" else route.continue_())
    file, place = votes(tmp_path / "votes.jsonl"), page.locator("input[type=file]")
    place.focus()
    with page.expect_request(lambda request: request.method == "POST"):
        place.set_input_files(file)
    page.get_by_label("Uploading").wait_for()
    assert page.evaluate("document.activeElement.type") == "file"
    count = len(jobs_of(site))
    page.get_by_role("button", name="Create the job", disabled=True).dispatch_event("click")
    told(page, "A file is still on its way.")
    error = {"message": "The disk is full.", "type": "server_error", "param": None, "code": None}
    held[0].fulfill(status=503, json={"error": error})
    page.get_by_role("alert").filter(has_text="The disk is full.").wait_for()
    assert (len(jobs_of(site)), place.input_value()) == (count, "")
    page.unroute("**/v1/files")
    place.set_input_files(file)
    page.get_by_text("is votes.jsonl").wait_for()


def test_the_end_of_a_log_is_shown_unless_one_has_scrolled_away(site: Any, new_page: Callable[..., Any]) -> None:
    site.trainer.hold.clear()
    asked = {"model": "bot@prod", "training_file": "feedback", "suffix": "bot"}
    job = httpx.post(f"{site.url}/v1/fine_tuning/jobs", json=asked, timeout=30).json()["id"]
    lines = [f"line {n}\n" for n in range(200)]

    def log(route: Any) -> None:
        text = "".join(lines)
        at = max(0, int(httpx.URL(route.request.url).params["offset"]))
        route.fulfill(body=text[at:], headers={"x-log-offset": str(at)})

    page = new_page()
    page.route("**/logs?*", log)
    page.goto(f"{site.url}/#/jobs/{job}")
    shown = page.locator("pre[role=region]")
    at_end = "(log) => log.scrollTop > 0 && log.scrollHeight - log.scrollTop - log.clientHeight < 2"
    shown.filter(has_text="line 199").wait_for()
    assert shown.evaluate(at_end)
    lines += ["line 200\n"]
    shown.filter(has_text="line 200").wait_for()
    assert shown.evaluate(at_end)
    shown.evaluate("(log) => { log.scrollTop = 10; }")
    page.evaluate("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")  # it is told then
    lines += ["line 201\n"]
    shown.filter(has_text="line 201").wait_for()
    assert shown.evaluate("(log) => log.scrollTop") == 10
    site.trainer.hold.set()
    status(page, "succeeded")


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


def test_who_has_zoomed_into_a_curve_stays_there(site: Any, new_page: Callable[..., Any]) -> None:
    """Of a training of which not every step is told, too: it is as long as its last one says."""
    site.trainer.hold.clear()
    asked = {"model": "bot@prod", "training_file": "feedback", "suffix": "bot"}
    job = httpx.post(f"{site.url}/v1/fine_tuning/jobs", json=asked, timeout=30).json()["id"]
    steps = [0, 99, 199, 499, 999]

    def events(route: Any) -> None:
        known = int(httpx.URL(route.request.url).params.get("before", -1))
        made = {"created_at": 1, "level": "info", "message": "", "type": "metrics"}
        fresh = [n for n in reversed(steps) if n > known]
        data = [{**made, "id": str(n), "data": {"step": n, "loss": 1 / (n + 50)}} for n in fresh]
        route.fulfill(json={"data": data, "has_more": False, "last_id": None})

    page = new_page(viewport={"width": 1100, "height": 1400})
    page.route("**/events?*", events)
    page.goto(f"{site.url}/#/jobs/{job}")
    plot = page.get_by_role("img", name="Loss over 1,000 steps")
    plot.wait_for()
    status(page, "running")
    canvas = page.locator(".plot canvas").first
    whole, box = canvas.evaluate("(one) => one.toDataURL()"), plot.locator(".u-over").bounding_box()
    page.mouse.move(box["x"] + 0.1 * box["width"], box["y"] + 50)
    page.mouse.down()
    page.mouse.move(box["x"] + 0.4 * box["width"], box["y"] + 50, steps=5)
    page.mouse.up()
    zoomed = canvas.evaluate("(one) => one.toDataURL()")
    assert zoomed != whole
    for _ in range(2):
        with page.expect_response(f"**/{job}"):
            pass
    assert canvas.evaluate("(one) => one.toDataURL()") == zoomed
    steps.append(1999)
    page.get_by_role("img", name="Loss over 2,000 steps").wait_for()
    assert canvas.evaluate("(one) => one.toDataURL()") == zoomed
    site.trainer.hold.set()
    status(page, "succeeded")


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
        deadline = time.monotonic() + 60
        while (asked_for := in_five_minutes(page, requests)) and time.monotonic() < deadline:
            page.wait_for_timeout(500)  # the last look at what it shows was still on its way
        assert asked_for == []


def in_five_minutes(page: Any, requests: list[str]) -> list[str]:
    """What the page asks for in so much time, which passes at once."""
    before = len(requests)
    page.clock.run_for(300_000)
    page.evaluate("fetch('/healthz').then((reply) => reply.status)")
    return [url for url in requests[before:] if "/healthz" not in url]
