"""Versions and their names in a real browser: promote, canary, roll back."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from typing import Any

import httpx

from bco_ray.testing.evaluations import made_evaluation

DASH = "\u2013"


def answered(site: Any, version: str, *labels: bool) -> None:
    """Answers of a version, and a vote on each."""
    with httpx.Client(base_url=site.url, timeout=30) as http:
        for label in labels:
            body = {"model": version, "messages": [{"role": "user", "content": "?"}]}
            answer = http.post("/v1/chat/completions", json=body).json()["id"]
            assert http.post("/v1/feedback", json={"response_id": answer, "label": label}).status_code == 201


def confirm(page: Any, button: str, yes: str) -> None:
    page.get_by_role("button", name=button, exact=True).click()
    page.get_by_role("button", name=yes).click()
    page.get_by_role("dialog").wait_for(state="detached")


def test_promote_share_and_roll_back(site: Any, new_page: Callable[..., Any]) -> None:
    answered(site, "bot/2", True, True, False)
    page = new_page()
    page.goto(f"{site.url}/#/models")
    page.get_by_role("link", name="bot", exact=True).click()
    page.get_by_role("row", name="Votes 2 up, 1 down none").wait_for()
    page.get_by_role(
        "row", name="People whose first vote is a thumb up (95 %) 67 % of 3 (21 to 94 %) nobody"
    ).wait_for()
    page.get_by_role("row", name="auc in training 0.8 0.7").wait_for()
    page.get_by_role("row", name="Trained on").get_by_text("90 of 100 votes").first.wait_for()
    page.get_by_role("button", name="Promote bot/2").click()
    page.get_by_label("Name", exact=True).fill("candidate")
    page.get_by_role("button", name="Yes, candidate means bot/2").click()
    page.get_by_label("Share of bot/2").fill("10")
    confirm(page, "Set the share", "Yes, set the share")
    page.get_by_role("row", name="Answers bot").get_by_text("90 %").wait_for()
    assert site.registry.state("bot").canary.percent == 10
    confirm(page, "Promote bot/2", "Yes, prod means bot/2")
    page.get_by_role("row", name="bot@prod").get_by_role("cell", name="2", exact=True).wait_for()
    assert site.registry.aliases("bot") == {"prod": 2, "candidate": 2}
    page.get_by_role("button", name="Roll back prod").click()
    page.get_by_text("It means bot/2 now, and goes back to bot/1.").wait_for()
    page.get_by_role("button", name="Yes, roll back").click()
    page.get_by_role("row", name=f"bot@prod 1 {DASH}").wait_for()
    page.wait_for_function(f"document.activeElement.textContent === '{DASH}'")
    assert page.get_by_role("button", name="Roll back").count() == 0, "there is nothing before it"
    assert site.registry.aliases("bot")["prod"] == 1
    page.get_by_text("Every move").click()
    page.get_by_role("listitem").filter(has_text="prod → 1 (was 2), taken back").wait_for()


def test_what_was_evaluated_stands_side_by_side(site: Any, new_page: Callable[..., Any]) -> None:
    book = site.registry.evaluations("bot")
    book.add(2, made_evaluation("bot/2", against="bot/1"), {})
    page = new_page()
    page.goto(f"{site.url}/#/models/bot")
    page.get_by_role("row", name="auc 0.7 (0.6 to 0.8)").wait_for()
    page.get_by_role("row", name=f"Intervals hold with 95 % {DASH}").wait_for()
    page.get_by_role("row", name="Evaluated").get_by_text("never").wait_for()
    page.get_by_role("row", name="Compared").get_by_text("wins 0.6 (0.45 to 0.74) of 16 by rule: shorter").wait_for()
    page.get_by_role("row", name="Must-pass prompts").get_by_text("1 of 2; failed: hours").wait_for()
    damaged = book.add(1, made_evaluation("bot/1"), {})
    (damaged / "evaluation.json").write_text("{}")
    page.reload()
    page.get_by_role("row", name="Evaluated").get_by_text("cannot be read").wait_for()
    page.get_by_role("row", name="auc 0.7 (0.6 to 0.8)").wait_for()
    shutil.rmtree(damaged)


def test_votes_that_cannot_be_counted_are_not_none(site: Any, new_page: Callable[..., Any]) -> None:
    page = new_page()
    page.route("**/v1/feedback/summary", lambda route: route.abort())
    page.goto(f"{site.url}/#/models/bot")
    page.get_by_role("alert").filter(has_text="The votes cannot be counted").wait_for()
    page.get_by_role("row", name="Votes not known not known").wait_for()
    page.get_by_role("row", name="thumb up (95 %) not known not known").wait_for()


def test_a_share_that_was_changed_meanwhile_stays(site: Any, new_page: Callable[..., Any]) -> None:
    site.registry.promote("bot", 2, "candidate")
    site.registry.set_canary("bot", 10)
    page = new_page()
    page.goto(f"{site.url}/#/models/bot")
    page.get_by_label("Share of bot/2").fill("50")
    site.registry.set_canary("bot", 0)
    page.get_by_role("button", name="Set the share").click()
    page.get_by_role("button", name="Yes, set the share").click()
    dialog = page.get_by_role("dialog")
    dialog.get_by_role("alert").filter(has_text="Nothing was changed").wait_for()
    assert site.registry.state("bot").percent == 0
    dialog.get_by_text("It is 0 % now.").wait_for()
    page.get_by_role("button", name="Yes, set the share").click()
    dialog.wait_for(state="detached")
    assert site.registry.state("bot").percent == 50
    page.wait_for_function("document.activeElement.textContent === 'Set the share'")


def test_while_a_canary_runs_the_page_follows_it_but_not_below_a_question(
    site: Any, new_page: Callable[..., Any]
) -> None:
    site.registry.promote("bot", 2, "candidate")
    site.registry.set_canary("bot", 10)
    page, summaries = new_page(), []
    page.on("request", lambda request: summaries.append(request.url) if request.url.endswith("/summary") else None)
    page.clock.install()
    page.goto(f"{site.url}/#/models/bot")
    page.get_by_text("each person once. The difference lies between").wait_for()
    page.get_by_label("Share of bot/2").fill("50")
    site.registry.set_canary("bot", 20)
    page.clock.run_for(16_000)
    page.get_by_role("row", name="Answers bot 20 % 80 %").wait_for()
    page.wait_for_function("document.querySelector('input[type=number]').value === '20'")
    page.get_by_role("button", name="Promote bot/2").click()
    page.get_by_role("dialog").wait_for()
    site.registry.set_canary("bot", 30)
    page.clock.run_for(60_000)
    page.wait_for_load_state("networkidle")
    assert page.locator("tr", has_text="Answers bot").inner_text().split("\t")[1:] == ["20 %", "80 %"]
    page.keyboard.press("Escape")
    page.clock.run_for(16_000)
    page.get_by_role("row", name="Answers bot 30 % 70 %").wait_for()
    assert len(summaries) == 1
    site.registry.set_canary("bot", 0)


def test_a_name_that_every_object_has_is_nobodys(site: Any, new_page: Callable[..., Any]) -> None:
    page = new_page()
    page.goto(f"{site.url}/#/models/bot")
    page.get_by_role("button", name="Promote bot/1").click()
    page.get_by_label("Name", exact=True).fill("constructor")
    page.get_by_text("constructor means nothing yet.").wait_for()
    page.keyboard.press("Escape")


def test_the_keyboard_is_enough_for_every_question(site: Any, new_page: Callable[..., Any]) -> None:
    """Opened, walked through and left with the keyboard; the focus stays inside, and goes back where it was."""
    for version, alias in ((2, "candidate"), (2, "prod"), (1, "prod")):
        site.registry.promote("bot", version, alias)
    page = new_page()
    page.goto(f"{site.url}/#/models/bot")
    inside = "document.activeElement === document.body || !!document.activeElement.closest('dialog')"
    for opener in ("Promote bot/2", "Roll back prod", "Set the share"):
        page.get_by_role("button", name=opener, exact=True).focus()
        page.keyboard.press("Enter")
        dialog = page.get_by_role("dialog")
        dialog.wait_for()
        reached = set()
        for _ in range(8):
            assert page.evaluate(inside)
            reached.add(page.evaluate("document.activeElement.textContent"))
            page.keyboard.press("Tab")
        assert any(text.startswith("Yes") for text in reached)
        assert "No, leave it" in reached
        page.keyboard.press("Escape")
        dialog.wait_for(state="detached")
        focused = "document.activeElement.getAttribute('aria-label') ?? document.activeElement.textContent"
        assert page.evaluate(focused) == opener


def test_a_name_that_was_moved_meanwhile_stays(site: Any, new_page: Callable[..., Any]) -> None:
    page = new_page()
    page.goto(f"{site.url}/#/models/bot")
    page.get_by_role("button", name="Promote bot/1").wait_for()
    site.registry.promote("bot", 2)
    page.get_by_role("button", name="Promote bot/1").click()
    page.get_by_role("button", name="Yes, prod means bot/1").click()
    page.get_by_role("dialog").get_by_role("alert").filter(has_text="prod").wait_for()
    assert site.registry.aliases("bot")["prod"] == 2
    site.registry.promote("bot", 1)
