"""Talking to versions, and voting, in a real browser."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

XSS = '<img src=x onerror="alert(1)"><script>alert(2)</script>{{7*7}}'


def ask(page: Any, text: str) -> None:
    page.get_by_label("Your message").fill(text)
    page.get_by_role("button", name="Send").click()


def words(page: Any, text: str) -> Any:
    """An answer; what a screen reader is told says the same."""
    return page.locator(".words", has_text=text)


def test_an_answer_comes_as_it_is_made_and_is_voted_on(site: Any, new_page: Callable[..., Any]) -> None:
    page = new_page()
    page.goto(site.url)
    page.get_by_label("Version").select_option("bot/2")
    ask(page, "Who are you?")
    words(page, "Hello from 2").wait_for()
    page.get_by_role("button", name="Thumb up").click()
    page.get_by_text("Saved.", exact=True).wait_for()
    page.get_by_text("Add a comment or a correction").click()
    page.get_by_label("Comment").fill("well said")
    page.get_by_label("What it should have said").fill("Good morning")
    page.get_by_role("button", name="Save with the vote").click()
    page.get_by_text("Saved with your words.").wait_for()
    first, second = site.votes()[-2:]
    assert (first.model, first.vote.label, first.effective) == ("bot/2", True, False)
    assert (second.vote.comment, second.vote.correction, second.effective) == ("well said", "Good morning", True)
    assert second.vote.source == "console"
    page.get_by_role("button", name="Thumb down").click()
    page.get_by_role("button", name="Thumb down", pressed=True).wait_for()
    third = after(site, second)
    assert (third.vote.label, third.vote.comment, third.vote.correction) == (False, "well said", "Good morning")
    page.get_by_role("button", name="Thumb up").click()
    page.get_by_role("button", name="Thumb up", pressed=True).wait_for()
    page.get_by_role("button", name="Thumb up").click()
    page.get_by_text("The vote is taken back.").wait_for()
    last = site.votes()[-1].vote
    assert (last.label, last.comment, last.correction) == (None, None, None)


def after(site: Any, vote: Any) -> Any:
    """The vote that was cast next."""
    deadline = time.monotonic() + 60
    while (last := site.votes()[-1]).seq == vote.seq and time.monotonic() < deadline:
        time.sleep(0.05)
    assert last.seq != vote.seq
    return last


def test_side_by_side_nobody_has_a_name_before_the_vote(site: Any, new_page: Callable[..., Any]) -> None:
    page = new_page()
    page.goto(site.url)
    page.get_by_label("Side by side").check()
    page.get_by_label("Version").select_option("bot/1")
    page.get_by_label("Compared with").select_option("bot/2")
    ask(page, "Hello?")
    turns = page.get_by_role("list", name="Conversation")
    words(page, "Hello from 1").wait_for()
    words(page, "Hello from 2").wait_for()
    assert "bot/" not in turns.inner_text()
    before = len(site.votes())
    page.get_by_role("button", name="A is better").focus()
    page.keyboard.press("Enter")
    page.get_by_text("Answer A: bot/").wait_for()
    assert page.evaluate("document.activeElement.textContent").startswith("Your votes are saved. Answer A is by bot/")
    votes = site.votes()[before:]
    assert sorted(vote.vote.label for vote in votes) == [False, True]
    assert {vote.model for vote in votes} == {"bot/1", "bot/2"}
    better = next(vote.model for vote in votes if vote.vote.label)
    assert page.get_by_text("Answer A: bot/").inner_text() == f"Answer A: {better}"
    assert {vote.vote.metadata["compared_with"] for vote in votes} == {vote.vote.response_id for vote in votes}
    page.get_by_text("Add a comment or a correction").first.click()
    page.get_by_label("Comment").first.fill("clearer")
    page.get_by_role("button", name="Save with the vote").first.click()
    page.get_by_text("Saved with your words.").wait_for()
    last = site.votes()[-1].vote
    before = next(vote.vote for vote in votes if vote.vote.response_id == last.response_id)
    assert last == before.model_copy(update={"comment": "clearer"})


def test_a_comparison_of_which_one_vote_is_stored_says_so(site: Any, new_page: Callable[..., Any]) -> None:
    page, sent = new_page(), []

    def lose_the_second(route: Any) -> None:
        sent.append(route)
        route.abort() if len(sent) == 2 else route.continue_()

    page.goto(site.url)
    page.get_by_label("Side by side").check()
    ask(page, "Hello?")
    words(page, "Hello from 1").wait_for()
    words(page, "Hello from 2").wait_for()
    page.route("**/v1/feedback", lose_the_second)
    page.get_by_role("button", name="Both are good").click()
    page.get_by_role("alert").filter(has_text="Only one of the two votes is known to be saved.").wait_for()
    page.get_by_role("button", name="Show who is who").click()
    page.get_by_text("Only one of the two votes is known to be saved. Answer A is by bot/").wait_for()
    assert page.locator("[aria-pressed=true]").count() == 1


def test_what_is_written_stays_text(site: Any, new_page: Callable[..., Any]) -> None:
    site.engines["bot/1"].words = [XSS]
    page = new_page()
    page.goto(site.url)
    page.get_by_label("Version").select_option("bot/1")
    ask(page, XSS)
    page.locator(".prompt", has_text=XSS).wait_for()
    words(page, XSS).wait_for()
    page.get_by_role("button", name="Thumb down").click()
    page.get_by_text("Add a comment or a correction").click()
    for label in ("Comment", "What it should have said"):
        page.get_by_label(label).fill(XSS)
    page.get_by_role("button", name="Save with the vote").click()
    page.get_by_text("Saved with your words.").wait_for()
    assert (site.votes()[-1].vote.comment, site.votes()[-1].vote.correction) == (XSS, XSS)
    assert page.locator("main img, main script").count() == 0


def test_an_answer_can_be_stopped_and_asked_for_again(site: Any, new_page: Callable[..., Any]) -> None:
    site.engines["bot/1"].words = ["many "] * 3000
    page = new_page()
    page.goto(site.url)
    page.get_by_label("Version").select_option("bot/1")
    ask(page, "Tell me all.")
    words(page, "many many").wait_for()
    page.get_by_role("button", name="Stop").click()
    page.get_by_text("Stopped. What there is can be voted on").wait_for()
    assert page.evaluate("document.activeElement.tagName") == "TEXTAREA"
    assert page.get_by_role("button", name="Stop").count() == 0
    site.engines["bot/1"].words = ["Hello", " again"]
    page.get_by_role("button", name="Ask again").click()
    words(page, "Hello again").wait_for()
    page.get_by_role("button", name="Thumb up").wait_for()


def test_an_answer_that_breaks_off_is_told_to_be_none(site: Any, new_page: Callable[..., Any]) -> None:
    delta = {"index": 0, "delta": {"content": "Half an"}, "finish_reason": None}
    chunk = {"id": "chatcmpl-half", "model": "bot/1", "choices": [delta]}
    page = new_page()
    page.goto(site.url)
    page.get_by_label("Version").select_option("bot/1")
    broken = {"content_type": "text/event-stream", "body": f"data: {json.dumps(chunk)}\n\n"}
    page.route("**/v1/chat/completions", lambda route: route.fulfill(**broken))
    ask(page, "Hello?")
    page.get_by_role("alert").filter(has_text="The answer broke off").wait_for()
    words(page, "Half an").wait_for()
    page.unroute("**/v1/chat/completions")
    page.get_by_role("button", name="Ask again").click()
    words(page, "Hello from 1").wait_for()
    assert page.get_by_role("alert").count() == 0


def test_models_that_cannot_be_listed_are_not_none(site: Any, new_page: Callable[..., Any]) -> None:
    page = new_page()
    page.route("**/v1/models", lambda route: route.abort())
    page.goto(site.url)
    page.get_by_role("alert").filter(has_text="The server does not answer").wait_for()
    assert page.get_by_text("No model is served.").count() == 0
    page.unroute("**/v1/models")
    page.get_by_role("button", name="Try again").click()
    page.get_by_role("option", name="bot/2").first.wait_for(state="attached")
    page.get_by_text("Ask something.").wait_for()


def test_an_address_that_is_none_shows_a_page(site: Any, new_page: Callable[..., Any]) -> None:
    page = new_page()
    for name in ("constructor", "__proto__", "toString/x"):
        page.goto(f"{site.url}/#/{name}")
        page.get_by_role("heading", name="Chat").wait_for()


def test_on_a_phone_the_composer_leaves_room_for_answers(site: Any, new_page: Callable[..., Any]) -> None:
    page = new_page(viewport={"width": 390, "height": 760}, has_touch=True, is_mobile=True)
    page.goto(site.url)
    page.get_by_label("Your message").wait_for()
    assert page.locator(".composer").bounding_box()["height"] < 760 / 5


def test_what_goes_wrong_is_said_in_words(site: Any, new_page: Callable[..., Any]) -> None:
    page = new_page()
    page.goto(site.url)
    page.get_by_label("Version").wait_for()
    ask(page, "long " * 2000)
    page.get_by_role("alert").filter(has_text="Shorten the messages").wait_for()


def test_the_keyboard_is_enough(site: Any, new_page: Callable[..., Any]) -> None:
    page = new_page()
    page.goto(site.url)
    page.get_by_role("option", name="bot/2").first.wait_for(state="attached")
    page.get_by_label("Your message").focus()
    page.keyboard.type("Hi")
    page.keyboard.press("Enter")
    words(page, "Hello from").wait_for()
    for _ in range(40):
        page.keyboard.press("Shift+Tab")
        if page.evaluate("document.activeElement.getAttribute('aria-label')") == "Thumb down":
            break
    page.keyboard.press("Enter")
    page.get_by_text("Saved.", exact=True).wait_for()
    assert site.votes()[-1].vote.label is False
    page.get_by_role("button", name="Thumb down").focus()
    assert page.get_by_role("button", name="Thumb down").get_attribute("aria-pressed") == "true"


def test_a_wrong_key_is_refused_and_a_right_one_is_kept_for_the_tab(
    open_site: Callable[..., Any], new_page: Callable[..., Any]
) -> None:
    site, page = open_site(guarded=True), new_page()
    page.goto(site.url)
    page.get_by_role("alert").filter(has_text="An API key is needed").wait_for()
    page.get_by_label("Key", exact=True).fill("sk-bco-no_such")
    page.get_by_role("button", name="Enter").click()
    page.get_by_role("alert").filter(has_text="unknown, expired or revoked").wait_for()
    page.get_by_label("Key", exact=True).fill(site.key)
    page.get_by_role("button", name="Enter").click()
    ask(page, "Hello?")
    words(page, "Hello from 1").wait_for()
    page.reload()
    page.get_by_label("Version").wait_for()
    assert page.evaluate("[sessionStorage.length, localStorage.getItem('bco.key')]") == [1, None]
    ask(page, "A secret?")
    words(page, "Hello from 1").wait_for()
    page.get_by_role("combobox", name="Theme").select_option("dark")
    page.get_by_role("button", name="Sign out").click()
    page.get_by_label("Key", exact=True).wait_for()
    page.get_by_role("alert").filter(has_text="You are signed out.").wait_for()
    assert page.evaluate("[sessionStorage.length, localStorage.length]") == [0, 0]
    page.wait_for_function("!document.body.textContent.includes('Hello from 1')")
    page.get_by_label("Key", exact=True).fill(site.key)
    page.get_by_role("button", name="Enter").click()
    page.get_by_text("Ask something.").wait_for()
    assert page.locator(".prompt").count() == 0


def test_who_signs_out_is_signed_out_in_other_tabs(open_site: Callable[..., Any], new_page: Callable[..., Any]) -> None:
    site, page = open_site(guarded=True), new_page()
    page.goto(site.url)
    page.get_by_label("Key", exact=True).fill(site.key)
    page.get_by_label("Remember it in this browser").check()
    page.get_by_role("button", name="Enter").click()
    ask(page, "A secret?")
    words(page, "Hello from 1").wait_for()
    other = page.context.new_page()
    other.goto(site.url)
    other.get_by_role("button", name="Sign out").click()
    page.get_by_role("alert").filter(has_text="You are signed out.").wait_for()
    assert page.get_by_text("A secret?").count() == 0
