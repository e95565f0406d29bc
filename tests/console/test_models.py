"""Versions and their names in a real browser: promote, canary, roll back."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import httpx


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
    page.get_by_role("row", name="Thumbs up").get_by_text("67 % of 3 (21 to 94 %)").wait_for()
    page.get_by_role("row", name="auc 0.8 0.7").wait_for()
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
    confirm(page, "Roll back prod", "Yes, roll back")
    page.get_by_role("row", name="bot@prod").get_by_role("cell", name="1", exact=True).wait_for()
    assert site.registry.aliases("bot")["prod"] == 1
    page.get_by_text("Every move").click()
    page.get_by_text("prod → 1 (was 2), taken back").wait_for()


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
