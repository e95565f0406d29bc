"""Every page as it looks: light, dark and on a phone, without serious findings of axe. How much is sent, how soon.

BCO_PICTURES=docs writes the pictures of docs/console.md anew.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from bco_ray.testing.evaluations import made_evaluation

LOOKS: dict[str, dict[str, Any]] = {
    "light": {"color_scheme": "light", "viewport": {"width": 1100, "height": 760}},
    "dark": {"color_scheme": "dark", "viewport": {"width": 1100, "height": 760}},
    "phone": {"color_scheme": "light", "viewport": {"width": 390, "height": 760}, "has_touch": True, "is_mobile": True},
}
PAGES = ("chat", "jobs", "jobs/new", "job", "data", "models", "models/bot")
PICTURES = {
    ("data", "light"),
    ("chat", "light"),
    ("job", "dark"),
    ("models/bot", "light"),
    ("chat", "phone"),
    ("jobs/new", "phone"),
}
MOST_TRANSFERRED_BYTES = 200_000


@pytest.fixture(scope="module")
def job(shared_site: Any) -> str:
    """One that has succeeded, and votes on both versions."""
    book = shared_site.registry.evaluations("bot")
    for version, against in ((1, None), (2, "bot/1")):
        book.add(version, made_evaluation(f"bot/{version}", against=against), {})
    vote = json.dumps({"prompt": "q", "completion": "yes", "label": True})
    with httpx.Client(base_url=shared_site.url, timeout=60) as http:
        for number, version in enumerate(("bot/1", "bot/2") * 12):
            body = {"model": version, "messages": [{"role": "user", "content": "?"}]}
            answer = http.post("/v1/chat/completions", json=body).json()["id"]
            label = bool(number % 2 or number % 3)
            assert http.post("/v1/feedback", json={"response_id": answer, "label": label}).is_success
        http.post("/v1/files", files={"file": ("votes.jsonl", vote)}, data={"purpose": "fine-tune"})
        asked = {"model": "bot@prod", "training_file": "feedback", "suffix": "bot", "metadata": {"team": "support"}}
        return str(http.post("/v1/fine_tuning/jobs", json=asked).json()["id"])


def show(page: Any, site: Any, job: str, name: str) -> None:
    page.goto(f"{site.url}/#/{name.replace('job', f'jobs/{job}') if name == 'job' else name}")
    match name:
        case "chat":
            page.get_by_label("Side by side").check()
            page.get_by_label("Your message").fill("How do I reset my password?")
            page.get_by_role("button", name="Send").click()
            page.get_by_role("button", name="A is better").click()
            page.get_by_text("Answer A: bot/").wait_for()
        case "job":
            page.locator(".badge.is-succeeded").wait_for()
            page.get_by_role("img", name="Loss over 16 steps").wait_for()
        case "data":
            page.get_by_label("Reason").wait_for()
        case "jobs/new":
            page.get_by_text("Every other setting").click()
        case _:
            page.get_by_role("table").first.wait_for()


def check(page: Any) -> None:
    """Nothing serious of axe's, and nothing that sticks out."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="needs axe-playwright-python").Axe()
    grave = [
        f"{one['id']} ({one['impact']}): {[node['html'][:200] for node in one['nodes']]}"
        for one in axe.run(page).response["violations"]
        if one["impact"] in {"serious", "critical"}
    ]
    assert not grave, grave
    width = page.evaluate("[document.documentElement.scrollWidth, innerWidth]")
    assert width[0] <= width[1], "the page itself does not scroll sideways"


@pytest.mark.parametrize("look", LOOKS)
@pytest.mark.parametrize("name", PAGES)
def test_a_page(site: Any, new_page: Callable[..., Any], job: str, name: str, look: str) -> None:
    site.engines["bot/1"].words = ["Open Settings, then Account, and choose “Reset password”."]
    site.engines["bot/2"].words = ["Sorry, I cannot help with that."]
    page = new_page(bypass_csp=True, **LOOKS[look])  # axe is put into the page
    show(page, site, job, name)
    check(page)
    if (place := os.environ.get("BCO_PICTURES")) and (name, look) in PICTURES:
        page.evaluate("document.activeElement.blur()")
        page.screenshot(path=Path(place) / f"console-{name.replace('/', '-')}-{look}.png")


@pytest.mark.parametrize("look", LOOKS)
def test_the_page_that_asks_for_a_key(open_site: Callable[..., Any], new_page: Callable[..., Any], look: str) -> None:
    page = new_page(bypass_csp=True, **LOOKS[look])
    page.goto(open_site(guarded=True).url)
    page.get_by_label("Key", exact=True).wait_for()
    check(page)


def ask_and_leave(page: Any, opener: str) -> None:
    page.get_by_role("button", name=opener, exact=True).click()
    page.get_by_role("dialog").wait_for()
    check(page)
    page.keyboard.press("Escape")
    page.get_by_role("dialog").wait_for(state="detached")


@pytest.mark.parametrize("look", LOOKS)
def test_questions(site: Any, new_page: Callable[..., Any], job: str, look: str) -> None:
    for version, alias in ((2, "candidate"), (2, "prod"), (1, "prod")):
        site.registry.promote("bot", version, alias)
    page = new_page(bypass_csp=True, **LOOKS[look])
    show(page, site, job, "job")
    for place, opener in (
        (f"jobs/{job}", "Retry"), ("models/bot", "Promote bot/2"), ("models/bot", "Roll back prod"),
        ("models/bot", "Set the share"),
    ):  # fmt: skip
        page.goto(f"{site.url}/#/{place}")
        ask_and_leave(page, opener)


@pytest.mark.parametrize("look", LOOKS)
def test_questions_about_a_job_that_runs_and_one_that_failed(
    site: Any, new_page: Callable[..., Any], look: str
) -> None:
    site.trainer.hold.clear()
    page = new_page(bypass_csp=True, **LOOKS[look])
    asked = {"model": "bot@prod", "training_file": "feedback", "suffix": "bot"}
    one = httpx.post(f"{site.url}/v1/fine_tuning/jobs", json=asked, timeout=60).json()
    path = f"/v1/fine_tuning/jobs/{one['id']}"
    page.goto(f"{site.url}/#/jobs/{one['id']}")
    page.locator(".badge.is-running").first.wait_for()
    for opener in ("Pause", "Cancel"):
        ask_and_leave(page, opener)
    assert httpx.post(f"{site.url}{path}/pause", timeout=60).is_success
    page.locator(".badge.is-paused").first.wait_for()
    ask_and_leave(page, "Resume")
    assert httpx.post(f"{site.url}{path}/cancel", timeout=60).is_success
    error = {"code": "out_of_memory", "message": "A worker ran out of memory.", "param": None}
    page.route(f"**{path}", lambda route: route.fulfill(json={**one, "status": "failed", "error": error}))
    for place in ("jobs", "data"):
        page.goto(f"{site.url}/#/{place}/{one['id']}")
        page.get_by_role("alert").filter(has_text="A worker ran out of memory.").wait_for()
        page.locator(".badge.is-failed").first.wait_for()
        check(page)
    site.trainer.hold.set()


@pytest.mark.parametrize("look", LOOKS)
def test_a_promotion_that_its_gate_refuses(site: Any, new_page: Callable[..., Any], tiny_dir: Path, look: str) -> None:
    site.registry.register("gated", tiny_dir, {"run": "gated", "gate": {"auc": {"min": 0.99}}})
    page = new_page(bypass_csp=True, **LOOKS[look])
    page.goto(f"{site.url}/#/models/gated")
    page.get_by_role("button", name="Promote gated/1").click()
    page.get_by_text("Its gate says no:").wait_for()
    page.get_by_label("Promote it all the same").check()
    check(page)


@pytest.mark.parametrize("look", LOOKS)
def test_forms_that_are_open_and_wrong(site: Any, new_page: Callable[..., Any], look: str) -> None:
    page = new_page(bypass_csp=True, **LOOKS[look])
    page.goto(f"{site.url}/#/chat")
    page.get_by_label("Your message").fill("How do I reset my password?")
    page.get_by_role("button", name="Send").click()
    page.get_by_role("button", name="Thumb up").click()
    page.get_by_text("Add a comment or a correction").click()
    page.get_by_label("What it should have said").fill("Open Settings.")
    check(page)
    page.goto(f"{site.url}/#/jobs/new")
    page.get_by_text("Every other setting").click()
    page.get_by_label("beta", exact=True).first.fill("-1")
    page.get_by_role("group", name="training", exact=True).get_by_label("max length", exact=True).fill("-1")
    page.get_by_role("button", name="Create the job").click()
    page.get_by_text("Name a model.").wait_for()
    check(page)


def test_little_is_sent_and_soon_seen(
    site: Any, new_page: Callable[..., Any], capsys: pytest.CaptureFixture[str]
) -> None:
    """All that the first look at the page transfers, headers included; times are printed, not asserted."""
    page = new_page()
    page.goto(site.url)
    page.get_by_label("Version").wait_for()
    sizes = page.evaluate(
        "performance.getEntries().filter((one) => one.transferSize).map((one) => [one.name, one.transferSize])"
    )
    page.wait_for_function("performance.getEntriesByName('first-contentful-paint').length")
    painted = page.evaluate("performance.getEntriesByName('first-contentful-paint')[0].startTime")
    assert painted > 0
    total = sum(size for _, size in sizes)
    assert total < MOST_TRANSFERRED_BYTES, sizes
    assert {httpx.URL(name).host for name, _ in sizes} == {httpx.URL(site.url).host}
    with capsys.disabled():
        print(f" the console: {total / 1000:.1f} kB sent, first paint after {painted:.0f} ms ", end="")  # noqa: T201
