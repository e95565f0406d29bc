"""Who may vote on what, and when: tokens, half answers, what is not stored, what is too old; many votes at once."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from starlette.requests import ClientDisconnect

from bco_ray.errors import StorageError
from bco_ray.serving.engines.protocol import EngineDeadError, TokenEvent
from bco_ray.serving.http import ledger as ledgers
from bco_ray.serving.http.feedback_tokens import SECRET_VARIABLE, FeedbackTokens, feedback_secret
from bco_ray.serving.http.ledger import Ledger
from bco_ray.serving.metrics import Metrics
from bco_ray.storage.export import export
from bco_ray.storage.feedback_log import Choice, Completion, ExpiredError, FeedbackLog, NotFoundError, Vote
from bco_ray.web.edge import Edge
from bco_ray.web.errors import ApiError

HI: Any = [{"role": "user", "content": "Hello"}]
ASK: Any = {"model": "helper", "messages": HI}


def error_code(response: httpx.Response) -> tuple[int, str]:
    return response.status_code, response.json()["error"]["code"]


# --- once per voter ---------------------------------------------------------------------------------------------------


def test_the_same_vote_again_is_a_replay(http_site: Any) -> None:
    answer = http_site.client.chat.completions.create(**ASK).id
    vote = {"response_id": answer, "label": True, "user": "ann"}
    first, again = (http_site.post("/v1/feedback", **vote) for _ in range(2))
    assert (first.status_code, again.status_code, again.json()) == (201, 200, first.json())
    assert http_site.post("/v1/feedback", **{**vote, "label": False}).status_code == 201
    assert http_site.post("/v1/feedback", **vote).status_code == 201, "a change of mind, twice"
    assert len(http_site.log.list_votes(response_id=answer)[0]) == 3


def test_votes_that_stand_are_counted_by_version(open_site: Callable[..., Any]) -> None:
    site = open_site()
    site.engine.says("Hi")
    for labels in ([True], [False, True], [False], [True, None]):
        answer = site.client.chat.completions.create(**ASK).id
        for label in labels:
            assert site.post("/v1/feedback", response_id=answer, label=label).status_code == 201
    (counted,) = site.http("GET", "/v1/feedback/summary").json()["data"]
    assert counted == {
        "id": "helper/3", "object": "feedback.count", "up": 2, "down": 1, "side_by_side": 0,
        "people": {"up": 2, "down": 1},
    }  # fmt: skip


# --- tokens -----------------------------------------------------------------------------------------------------------


def test_the_token_of_an_answer_votes_on_it_only(http_site: Any) -> None:
    first, other = (http_site.post("/v1/chat/completions", **ASK) for _ in range(2))
    token = first.json()["feedback_token"]
    assert first.headers["x-feedback-token"] == token
    vote = {"response_id": first.json()["id"], "label": True}
    assert http_site.post("/v1/feedback", **vote, feedback_token=token).status_code == 201
    in_header = http_site.http("POST", "/v1/feedback", json=vote, headers={"x-feedback-token": token})
    assert in_header.status_code == 200
    wrong = {"response_id": other.json()["id"], "label": True, "feedback_token": token}
    assert error_code(http_site.post("/v1/feedback", **wrong)) == (403, "feedback_token_invalid")
    lines = "\n".join(json.dumps(line) for line in ({**vote, "feedback_token": token}, wrong))
    results = http_site.http("POST", "/v1/feedback/batch", content=lines).json()["data"]
    assert [result["status"] for result in results] == [200, 403]


def test_a_stream_carries_its_token_in_the_end(http_site: Any) -> None:
    with httpx.stream("POST", f"{http_site.url}/v1/chat/completions", json={**ASK, "stream": True}) as response:
        lines = [line.removeprefix("data: ") for line in response.iter_lines() if line]
    final = json.loads(lines[-2])
    assert final["choices"][0]["finish_reason"] == "stop"
    assert final["feedback_token"] == response.headers["x-feedback-token"]


def test_tokens_expire_and_cannot_be_made(monkeypatch: pytest.MonkeyPatch) -> None:
    tokens = FeedbackTokens(b"x" * 16, seconds=60)
    token = tokens.issue("a")
    tokens.check(token, "a")
    for bad in ("", ".", "9" * 20, token + "x", token.replace(".", ""), "²." + token, "é", token[:-1]):
        with pytest.raises(ApiError) as caught:
            tokens.check(bad, "a")
        assert caught.value.code == "feedback_token_invalid"
    monkeypatch.setattr(time, "time", lambda: 4e9)
    with pytest.raises(ApiError) as caught:
        tokens.check(token, "a")
    assert (caught.value.status, caught.value.code) == (403, "feedback_token_expired")


def test_the_secret_is_kept_or_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(SECRET_VARIABLE, raising=False)
    secret = feedback_secret(tmp_path)
    assert feedback_secret(tmp_path) == secret
    assert (tmp_path / "feedback-secret").stat().st_mode & 0o777 == 0o600
    monkeypatch.setenv(SECRET_VARIABLE, "y" * 16)
    assert feedback_secret(tmp_path) == b"y" * 16
    monkeypatch.setenv(SECRET_VARIABLE, "short")
    with pytest.raises(StorageError, match=SECRET_VARIABLE):
        feedback_secret(tmp_path)


def test_only_known_origins_may_vote_from_a_browser(open_site: Callable[..., Any]) -> None:
    site = open_site(cors_origins=("https://shop.example",))
    asks = {"access-control-request-method": "POST", "access-control-request-headers": "content-type"}
    allow = "access-control-allow-origin"
    known, unknown = {"origin": "https://shop.example"}, {"origin": "https://evil.example"}
    assert site.http("OPTIONS", "/v1/feedback", headers={**asks, **known}).headers[allow] == known["origin"]
    assert allow not in site.http("OPTIONS", "/v1/feedback", headers={**asks, **unknown}).headers
    vote = site.http("POST", "/v1/feedback", json={"response_id": "x", "label": True}, headers=known)
    assert (vote.status_code, vote.headers[allow]) == (404, known["origin"])
    assert allow not in site.http("GET", "/v1/feedback", headers=known).headers
    assert allow not in site.http("GET", "/v1/models", headers=known).headers


@pytest.mark.parametrize(
    ("origin", "allowed"),
    [(None, True), ("{url}", True), ("https://shop.example", True), ("https://evil.example", False), ("null", False),
     ("http://[", False)],
)  # fmt: skip
def test_foreign_pages_may_not_send(open_site: Callable[..., Any], origin: str | None, allowed: bool) -> None:
    site = open_site(cors_origins=("https://shop.example",))
    headers = {"content-type": "text/plain"} | ({"origin": origin.format(url=site.url)} if origin else {})
    sent = [
        site.http(method, path, content="{}", headers=headers)
        for method, path in (("POST", "/v1/feedback/batch"), ("POST", "/v1/registry/models/x/rollback"),
                             ("DELETE", "/v1/feedback/fb-x"))
    ]  # fmt: skip
    codes = [error_code(response) if response.is_error else None for response in sent]
    assert (
        all(code != (403, "origin_not_allowed") for code in codes)
        if allowed
        else set(codes) == {(403, "origin_not_allowed")}
    )
    assert site.http("GET", "/v1/models", headers=headers).status_code == 200


# --- half answers -----------------------------------------------------------------------------------------------------


def test_a_failed_stream_can_be_voted_on_and_is_not_trained_on(http_site: Any) -> None:
    http_site.engine.events = [TokenEvent([1], "so far"), EngineDeadError("gone")]
    stream = http_site.client.chat.completions.create(**ASK, stream=True)
    seen = next(stream).id
    with pytest.raises(openai.APIError, match="gone"):
        list(stream)
    assert http_site.post("/v1/feedback", response_id=seen, label=False).status_code == 201
    row = http_site.log.get_completion(seen)
    assert [(c.text, c.token_ids, c.finish_reason) for c in row.choices] == [("so far", [1], "abort")]
    manifest = export(http_site.log, http_site.log.storage / "feedback")
    assert manifest is not None
    assert manifest.left_out["aborted"] == 1


def test_a_vote_in_the_middle_of_a_stream_waits_for_its_answer(http_site: Any) -> None:
    http_site.engine.delay_seconds = 0.3
    stream = http_site.client.chat.completions.create(**ASK, stream=True)
    answer = next(iter(stream)).id
    stream.close()
    assert http_site.post("/v1/feedback", response_id=answer, label=True).status_code == 201
    assert http_site.log.get_completion(answer).choices[0].finish_reason in {"abort", "stop"}


def test_batched_votes_wait_for_answers_too(tmp_path: Path) -> None:
    log = FeedbackLog.open(tmp_path)

    async def voting() -> list[Any]:
        ledger = Ledger(log)
        with ledger.unfinished("a"):
            early = asyncio.create_task(ledger.vote_all([(Vote(response_id="a", label=True), None)]))
            await asyncio.sleep(0.05)
            assert not early.done()
            ledger.answered(an_answer("a"))
            outcomes = await early
        await ledger.close()
        return outcomes

    assert [created for _, created in asyncio.run(voting())] == [True]


# --- what is not kept -------------------------------------------------------------------------------------------------


def test_what_is_not_stored_takes_votes_and_keeps_nothing(http_site: Any) -> None:
    answer = http_site.client.chat.completions.create(**ASK, store=False, user="ann", stop="secret")
    row = http_site.log.get_completion(answer.id)
    assert (row.messages, row.prompt_ids, row.user, row.choices) == ([], [], None, [Choice("", [], "stop")])
    assert "secret" not in json.dumps(row.sampling)
    assert row.tokens == (answer.usage.prompt_tokens, 2)
    assert http_site.post("/v1/feedback", response_id=answer.id, label=True).status_code == 201
    manifest = export(http_site.log, http_site.log.storage / "feedback")
    assert manifest is not None
    assert manifest.left_out["not_stored"] == 1


def test_old_answers_take_no_votes_and_are_emptied(
    open_site: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    site = open_site(retention_days=1.0)
    site.engine.says("Hi")
    answer = site.client.chat.completions.create(**ASK).id
    vote = site.post("/v1/feedback", response_id=answer, label=True).json()["id"]
    old = replace(site.log.get_completion(answer), id="chatcmpl-old", created_at=time.time() - 2 * 86400)
    site.log.add_completion(old)
    assert error_code(site.post("/v1/feedback", response_id=old.id, label=True)) == (410, "expired")
    assert site.http("DELETE", f"/v1/feedback/{vote}").status_code == 200
    monkeypatch.setattr(ledgers, "SWEEP_SECONDS", 60.0)

    async def sweep() -> None:
        sweeping = asyncio.create_task(Ledger(site.log, 1.0).sweep())
        while site.log.get_completion(old.id).messages:
            await asyncio.sleep(0.02)
        sweeping.cancel()

    asyncio.run(asyncio.wait_for(sweep(), 30))
    assert site.log.get_completion(answer).messages == HI


# --- many at once -----------------------------------------------------------------------------------------------------


def an_answer(name: str, age_seconds: float = 0.0) -> Completion:
    when = time.time() - age_seconds
    return Completion(name, when, "m/1", "fp", HI, [1], [Choice("hi", [1], "stop")], {})


def test_votes_that_come_together_share_transactions(tmp_path: Path) -> None:
    log, transactions = FeedbackLog.open(tmp_path), list[int]()
    add_all = log.add_all

    def counted(answers: Any, ballots: Any, **options: Any) -> Any:
        transactions.append(len(ballots))
        return add_all(answers, ballots, **options)

    log.add_all = counted  # type: ignore[method-assign]

    async def voting() -> list[Any]:
        ledger = Ledger(log, retention_days=1.0)
        await asyncio.gather(ledger.answered(an_answer("a")), ledger.answered(an_answer("old", 1e6)))
        names = ["a"] * 300 + ["none", "old"] + ["a"] * 300
        votes = (Vote(response_id=name, label=True, user=f"u{i}") for i, name in enumerate(names))
        return await asyncio.gather(*(ledger.vote(vote, None) for vote in votes), return_exceptions=True)

    outcomes = asyncio.run(voting())
    assert [type(outcome) for outcome in outcomes[300:302]] == [NotFoundError, ExpiredError]
    stored = [outcome for outcome in outcomes if isinstance(outcome, tuple)]
    assert (len(stored), len(log.list_votes(limit=1000)[0])) == (600, 600)
    assert sum(transactions) == 602
    assert len(transactions) <= 5


def test_a_batch_waits_its_turn_behind_the_answer_it_is_about(tmp_path: Path) -> None:
    log = FeedbackLog.open(tmp_path)

    async def voting() -> list[Any]:
        ledger = Ledger(log)
        written = ledger.answered(an_answer("a"))
        outcomes = await ledger.vote_all([(Vote(response_id="a", label=True), None)])
        await written
        return outcomes

    assert isinstance(asyncio.run(voting())[0], tuple)


def test_a_caller_who_leaves_takes_nobody_along(tmp_path: Path) -> None:
    log = FeedbackLog.open(tmp_path)

    async def voting() -> None:
        ledger = Ledger(log)
        await ledger.answered(an_answer("a"))
        votes = [asyncio.create_task(ledger.vote(Vote(response_id="a", label=True, user=u), None)) for u in "xyz"]
        await asyncio.sleep(0)
        votes[1].cancel()
        await asyncio.gather(*votes, return_exceptions=True)

    asyncio.run(voting())
    assert {event.vote.user for event in log.list_votes()[0]} >= {"x", "z"}


def test_writing_needs_no_thread_of_others(tmp_path: Path) -> None:
    """Nor does closing lose what was handed in."""
    log, released = FeedbackLog.open(tmp_path), threading.Event()

    async def voting() -> bool:
        asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(1))
        occupied = asyncio.create_task(asyncio.to_thread(released.wait, 30))
        await asyncio.sleep(0)
        ledger = Ledger(log)
        await asyncio.wait_for(ledger.answered(an_answer("a")), 10)
        _, created = await ledger.vote(Vote(response_id="a", label=True), None)
        ledger.answered(an_answer("b"))
        await ledger.close()
        released.set()
        await occupied
        return created

    try:
        assert asyncio.run(voting())
    finally:
        released.set()
    assert log.get_completion("b").id == "b"


# --- who asks, and for how long ---------------------------------------------------------------------------------------


def test_deadlines_and_shares(http_site: Any) -> None:
    def asked(headers: dict[str, str]) -> Any:
        http_site.http("POST", "/v1/chat/completions", json={**ASK, "user": "ann"}, headers=headers)
        return http_site.engine.asked[-1]

    began = time.time()
    assert began + 590 < asked({}).deadline < time.time() + 601
    assert asked({"x-deadline-seconds": "5"}).deadline < time.time() + 6
    assert asked({"x-deadline-seconds": "5000"}).deadline < time.time() + 601
    for bad in ("0", "-1", "nan", "inf", "soon"):
        response = http_site.http("POST", "/v1/chat/completions", json=ASK, headers={"x-deadline-seconds": bad})
        assert response.status_code == 422
    assert asked({}).share == "ann"
    keyed = asked({"authorization": "Bearer sk-1"}).share
    assert keyed != asked({"authorization": "Bearer sk-2"}).share
    assert "sk-1" not in keyed


def test_metrics_name_versions_and_no_users(http_site: Any) -> None:
    answer = http_site.client.chat.completions.create(**ASK, user="zoe").id
    vote = http_site.post("/v1/feedback", response_id=answer, label=False, user="zoe").json()
    http_site.http("GET", "/v1/feedback/fb-nobody")
    before = http_site.http("GET", "/metrics").text
    for _ in range(2):
        http_site.http("DELETE", f"/v1/feedback/{vote['id']}")
    text = http_site.http("GET", "/metrics").text
    for line in (
        'bco_votes_total{label="down",model="helper/3"}',
        'bco_votes_total{label="withdrawn",model="helper/3"} 1.0',
        'bco_tokens_total{kind="cached",model="helper/3"}',
        'bco_first_token_seconds_count{model="helper/3"}',
        'bco_inter_token_seconds_count{model="helper/3"}',
        'bco_request_seconds_count{route="/v1/feedback/{vote_id}",status="4xx"}',
        "bco_engine_kv_tokens 3.0",
        "bco_engine_waiting 2.0",
        "bco_gateway_info{",
    ):
        assert line in text
    assert 'label="withdrawn"' not in before
    assert "zoe" not in text


@pytest.mark.parametrize("left", [asyncio.CancelledError(), ClientDisconnect()], ids=lambda left: type(left).__name__)
def test_a_client_that_left_is_no_fault_of_ours(left: BaseException) -> None:
    async def leaving(scope: Any, receive: Any, send: Any) -> None:
        raise left

    metrics = Metrics()
    scope = {"type": "http", "method": "POST", "path": "/", "headers": []}
    with pytest.raises(type(left)):
        asyncio.run(Edge(leaving, served=metrics.served, send_request_id=True)(scope, None, None))  # type: ignore[arg-type]
    assert 'bco_request_seconds_count{route="other",status="4xx"} 1.0' in metrics.render(None, ready=True).decode()
