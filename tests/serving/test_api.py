"""The API over a socket, driven by the stock `openai` client, and with plain HTTP where that client is too polite."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from bco_ray.errors import ModelError
from bco_ray.serving.args import ServeArgs, describe
from bco_ray.serving.engines.batching.engine import HFEngine
from bco_ray.serving.engines.protocol import (
    EngineDeadError,
    EngineOverloadedError,
    TokenEvent,
)
from bco_ray.serving.http import prompts
from bco_ray.text import load_tokenizer

HI: Any = [{"role": "user", "content": "Hello"}]
JSON = {"content-type": "application/json"}


@pytest.fixture
def site(http_site: Any) -> Any:
    return http_site


def an_answer(site: Any) -> str:
    return site.client.chat.completions.create(model="helper", messages=HI).id


def error_of(response: httpx.Response) -> dict[str, Any]:
    """The envelope, checked for its shape."""
    assert response.headers["x-request-id"]
    body = response.json()
    assert set(body) == {"error"}
    assert set(body["error"]) == {"message", "type", "param", "code"}
    assert body["error"]["message"]
    return dict(body["error"])


# --- chat -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["helper/3", "helper@prod", "helper"])
def test_every_name_answers_with_the_exact_version(site: Any, name: str) -> None:
    answer = site.client.chat.completions.create(model=name, messages=HI)
    assert (answer.model, answer.choices[0].message.content) == ("helper/3", "Hi there")
    assert answer.system_fingerprint is not None
    assert answer.system_fingerprint.endswith("helper/3")
    assert answer.id.startswith("chatcmpl-")
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 2
    assert answer.usage.prompt_tokens == len(site.engine.asked[0].token_ids)


def test_the_prompt_is_the_models_own_template(site: Any, tiny_dir: Path) -> None:
    site.client.chat.completions.create(model="helper", messages=[{"role": "system", "content": "Be."}, *HI])
    rendered = load_tokenizer(tiny_dir).decode(site.engine.asked[0].token_ids)
    assert rendered == "<|im_start|>system\nBe.<|im_end|>\n<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n"


def test_content_parts_are_text(site: Any) -> None:
    parts: Any = [{"role": "user", "content": [{"type": "text", "text": "Hel"}, {"type": "text", "text": "lo"}]}]
    answer = site.client.chat.completions.create(model="helper", messages=parts)
    site.client.chat.completions.create(model="helper", messages=HI)
    assert site.engine.asked[0].token_ids == site.engine.asked[1].token_ids
    assert site.log.get_completion(answer.id).messages == HI, "the log keeps what the template saw"
    image: Any = [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]
    with pytest.raises(openai.BadRequestError, match="text parts"):
        site.client.chat.completions.create(model="helper", messages=image)


def test_sampling_parameters_reach_the_engine(site: Any) -> None:
    site.client.chat.completions.create(
        model="helper", messages=HI, temperature=0, top_p=0.5, seed=3, stop="x", max_tokens=9, max_completion_tokens=4,
        n=2, extra_body={"top_k": 7, "unknown": {"field": 1}},
    )  # fmt: skip
    asked = sorted(site.engine.asked, key=lambda r: r.seed or 0)
    assert [(r.seed, r.temperature, r.top_p, r.top_k, r.stop, r.max_new) for r in asked] == [
        (3, 0.0, 0.5, 7, ("x",), 4),
        (4, 0.0, 0.5, 7, ("x",), 4),
    ]


def test_null_means_default(site: Any) -> None:
    nulls = dict.fromkeys(("temperature", "top_p", "seed", "stop", "n", "stream", "max_tokens", "user", "tools"))
    assert site.http("POST", "/v1/chat/completions", json={"model": "helper", "messages": HI, **nulls}).is_success
    assert (site.engine.asked[0].temperature, site.engine.asked[0].max_new) == (
        1.0,
        512 - len(site.engine.asked[0].token_ids),
    )


def test_several_choices(site: Any) -> None:
    answer = site.client.chat.completions.create(model="helper", messages=HI, n=3)
    assert [(c.index, c.message.content) for c in answer.choices] == [(i, "Hi there") for i in range(3)]
    assert len(site.log.get_completion(answer.id).choices) == 3


def test_the_log_holds_the_answer(site: Any) -> None:
    answer = site.client.chat.completions.create(model="helper", messages=HI, temperature=0.5, user="ann")
    row = site.log.get_completion(answer.id)
    assert (row.model, row.messages, row.user, row.endpoint) == ("helper/3", HI, "ann", "chat")
    assert (row.choices[0].text, row.choices[0].token_ids, row.choices[0].finish_reason) == ("Hi there", [0, 1], "stop")
    assert row.prompt_ids == site.engine.asked[0].token_ids
    assert row.sampling["temperature"] == 0.5


def test_stream(site: Any) -> None:
    chunks = list(site.client.chat.completions.create(model="helper", messages=HI, stream=True))
    deltas = [c.choices[0].delta for c in chunks]
    assert deltas[0].role == "assistant"
    assert "".join(d.content or "" for d in deltas) == "Hi there"
    assert [c.choices[0].finish_reason for c in chunks] == [None, None, None, "stop"]
    assert {(c.id, c.model) for c in chunks} == {(chunks[0].id, "helper/3")}


def test_stream_with_usage_and_done(site: Any) -> None:
    body = {"model": "helper", "messages": HI, "stream": True, "stream_options": {"include_usage": True}, "n": 2}
    response = site.http("POST", "/v1/chat/completions", json=body)
    assert response.headers["content-type"].startswith("text/event-stream")
    lines = [line.removeprefix("data: ") for line in response.text.split("\n\n") if line]
    assert lines[-1] == "[DONE]"
    chunks = [json.loads(line) for line in lines[:-1]]
    assert chunks[-1]["choices"] == []
    assert chunks[-1]["usage"]["completion_tokens"] == 4
    assert all(c["usage"] is None for c in chunks[:-1])
    assert sorted(c["choices"][0]["index"] for c in chunks[:-1] if c["choices"][0]["finish_reason"]) == [0, 1]


def test_the_row_is_there_before_the_stream_ends(site: Any) -> None:
    """A vote cast at the sight of the last chunk, with the connection still open, finds its answer."""
    for chunk in site.client.chat.completions.create(model="helper", messages=HI, stream=True):
        if chunk.choices[0].finish_reason:
            site.client.chat.completions.update(chunk.id, metadata={"feedback": "up"})
    assert [e.vote.label for e in site.log.list_votes(response_id=chunk.id)[0]] == [True]


def test_leaving_a_stream_cancels_the_engine(site: Any) -> None:
    site.engine.says(*["more "] * 500)
    site.engine.delay_seconds = 0.05
    with site.client.chat.completions.create(model="helper", messages=HI, stream=True) as stream:
        next(iter(stream))
    deadline = time.monotonic() + 20
    while not site.engine.closed and time.monotonic() < deadline:
        time.sleep(0.05)
    assert site.engine.closed == 1


def test_an_error_before_the_first_token_is_plain_http(site: Any) -> None:
    site.engine.events = [EngineOverloadedError("3 requests wait already")]
    for stream in (False, True):
        response = site.http("POST", "/v1/chat/completions", json={"model": "helper", "messages": HI, "stream": stream})
        assert (response.status_code, response.headers["retry-after"]) == (429, "1")
        assert error_of(response)["code"] == "overloaded"


def test_an_error_in_the_middle_ends_the_stream_with_an_envelope(site: Any) -> None:
    site.engine.events = [TokenEvent([1], "so far"), EngineDeadError("gone")]
    with pytest.raises(openai.APIError, match="gone"):
        list(site.client.chat.completions.create(model="helper", messages=HI, stream=True))


def test_text_completions(site: Any) -> None:
    answer = site.client.completions.create(model="helper", prompt="Once", max_tokens=5)
    assert (answer.object, answer.choices[0].text, answer.model) == ("text_completion", "Hi there", "helper/3")
    site.client.completions.create(model="helper", prompt=site.engine.asked[0].token_ids)
    assert site.engine.asked[0].token_ids == site.engine.asked[1].token_ids
    pieces = [c.choices[0].text for c in site.client.completions.create(model="helper", prompt="Once", stream=True)]
    assert "".join(pieces) == "Hi there"


# --- models and operations --------------------------------------------------------------------------------------------


def test_models(site: Any) -> None:
    assert [m.id for m in site.client.models.list()] == ["helper/3", "helper@prod"]
    assert site.client.models.retrieve("helper/3").object == "model"
    assert site.client.models.retrieve("helper@prod").model_extra == {"root": "helper/3", "max_model_len": 512}
    with pytest.raises(openai.NotFoundError):
        site.client.models.retrieve("other/1")


def test_operations(site: Any) -> None:
    an_answer(site)
    assert site.http("GET", "/healthz").json() == {"status": "ok"}
    assert site.http("GET", "/readyz").json()["models"] == ["helper/3"]
    assert 'bco_answers_total{finish_reason="stop",model="helper/3"}' in site.http("GET", "/metrics").text
    assert "/v1/feedback" in site.http("GET", "/openapi.json").json()["paths"]


def test_a_dead_engine_is_not_ready(site: Any) -> None:
    site.engine.events = [EngineDeadError("gone")]
    response = site.http("GET", "/readyz")
    assert (response.status_code, error_of(response)["code"]) == (503, "engine_unavailable")


# --- errors -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "path", "content", "status", "code"),
    [
        ("POST", "/v1/chat/completions", b'{"model": ', 400, "invalid_json"),
        ("POST", "/v1/chat/completions", b"\xff\xfe", 400, "invalid_json"),
        ("POST", "/v1/chat/completions", b"[" * 100_000, 400, "invalid_json"),
        ("POST", "/v1/chat/completions", b"[]", 422, "invalid_field"),
        ("POST", "/v1/chat/completions", b'{"model": "helper"}', 422, "invalid_field"),
        ("POST", "/v1/chat/completions", b'{"model": "helper", "messages": []}', 422, "invalid_field"),
        ("GET", "/v1/nothing", None, 404, "not_found"),
        ("PUT", "/v1/models", None, 405, "method_not_allowed"),
        ("GET", "/v1/feedback?limit=0", None, 422, "invalid_field"),
        ("GET", "/v1/feedback?after=fb-x", None, 400, "invalid_field"),
        ("GET", "/v1/feedback/fb-x", None, 404, "not_found"),
        ("DELETE", "/v1/feedback/fb-x", None, 404, "not_found"),
        ("POST", "/v1/feedback", b'{"response_id": "chatcmpl-x", "label": true}', 404, "not_found"),
        ("POST", "/v1/feedback", b'{"response_id": "chatcmpl-x", "label": "up"}', 422, "invalid_field"),
    ],
)
def test_errors_have_one_shape(
    site: Any, method: str, path: str, content: bytes | None, status: int, code: str
) -> None:
    response = site.http(method, path, content=content, headers={"content-type": "application/json"})
    assert (response.status_code, error_of(response)["code"]) == (status, code)


@pytest.mark.parametrize(
    "fields",
    [
        {"messages": [{"role": "user", "content": "\ud800"}]},
        {"messages": [{"role": "user", "content": "a", "name": "\udfff"}]},
        {"tools": [{"\ud800": 1}]},
        {"tools": [{"limit": float("nan")}]},
        {"messages": [{"role": "user", "content": "a\0b"}]},
        {"user": "\0"},
    ],
)
def test_what_could_not_be_exported_is_not_let_in(site: Any, fields: dict[str, Any]) -> None:
    body = json.dumps({"model": "helper", "messages": HI, **fields})
    response = site.http("POST", "/v1/chat/completions", content=body, headers={"content-type": "application/json"})
    assert (response.status_code, error_of(response)["code"]) == (422, "invalid_field")
    assert error_of(response)["param"] == next(iter(fields))


def test_405_says_what_is_allowed(site: Any) -> None:
    assert "GET" in site.http("PUT", "/v1/models").headers["allow"]


@pytest.mark.parametrize("prompt", [[-1], [10**30], 5, [["a"]]])
def test_prompts_that_are_none(site: Any, prompt: Any) -> None:
    response = site.http("POST", "/v1/completions", json={"model": "helper", "prompt": prompt})
    assert (response.status_code, error_of(response)["code"]) == (422, "invalid_field")


def test_a_bad_field_is_named(site: Any) -> None:
    response = site.http("POST", "/v1/chat/completions", json={"model": "helper", "messages": HI, "temperature": 3})
    assert (response.status_code, error_of(response)["param"]) == (422, "temperature")


def test_an_unknown_model_is_named(site: Any) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        site.client.chat.completions.create(model="other/1", messages=HI)
    assert (caught.value.code, caught.value.param) == ("model_not_found", "model")
    assert "helper@prod" in str(caught.value)


def test_an_over_long_prompt_is_told_its_length(site: Any) -> None:
    with pytest.raises(openai.BadRequestError, match=r"tokens; the model reads 512") as caught:
        site.client.chat.completions.create(model="helper", messages=[{"role": "user", "content": "word " * 600}])
    assert caught.value.code == "context_length_exceeded"
    assert site.engine.asked == []


@pytest.mark.parametrize(
    ("path", "fields"),
    [("/v1/completions", {"prompt": [10_000] * 600}), ("/v1/chat/completions", {"messages": HI * 600})],
)
def test_what_cannot_fit_is_not_even_rendered(
    site: Any, monkeypatch: pytest.MonkeyPatch, path: str, fields: dict[str, Any]
) -> None:
    for never in ("_chat_prompt", "_plain"):
        monkeypatch.setattr(prompts, never, None)
    response = site.post(path, model="helper", **fields)
    assert (response.status_code, error_of(response)["code"]) == (400, "context_length_exceeded")
    assert "600 tokens" in response.json()["error"]["message"]


BIG = "x" * (prompts.LONG_CHARACTERS + 1)


@pytest.mark.parametrize(
    "fields",
    [
        {"messages": [{**HI[0], "tool_calls": [{"function": {"arguments": {"x": BIG}}}]}]},
        {"messages": [{**HI[0], "name": BIG}]},
        {"messages": HI, "tools": [{"x": {str(i): [i] for i in range(prompts.LONG_CHARACTERS // 2)}}]},
    ],
    ids=["tool_calls", "name", "tools"],
)
def test_nothing_big_is_rendered_on_the_loop(
    open_site: Any, monkeypatch: pytest.MonkeyPatch, fields: dict[str, Any]
) -> None:
    site, threads = open_site(template="{% if tools %}{% endif %}hello"), list[int]()
    site.engine.says("ok")
    render = prompts._chat_prompt

    def rendering(*arguments: Any) -> Any:
        threads.append(threading.get_ident())
        return render(*arguments)

    monkeypatch.setattr(prompts, "_chat_prompt", rendering)
    assert site.post("/v1/chat/completions", model="helper", messages=HI).is_success
    assert site.post("/v1/chat/completions", model="helper", **fields).is_success
    assert len(set(threads)) == 2, "the small one on the loop, the big one in a thread"


def test_a_body_that_is_too_large_is_refused(site: Any) -> None:
    response = site.http("POST", "/v1/feedback/batch", content=b" " * ((32 << 20) + 1))
    assert (response.status_code, error_of(response)["code"]) == (413, "body_too_large")


def test_our_own_mistakes_are_500_without_details(site: Any) -> None:
    site.engine.events = [ZeroDivisionError("secret detail")]
    response = site.http("POST", "/v1/chat/completions", json={"model": "helper", "messages": HI})
    error = error_of(response)
    assert (response.status_code, error["type"], error["code"]) == (500, "server_error", "internal_error")
    assert "secret" not in response.text


def test_the_callers_request_id_comes_back(site: Any) -> None:
    assert site.http("GET", "/healthz", headers={"x-request-id": "mine"}).headers["x-request-id"] == "mine"


# --- feedback ---------------------------------------------------------------------------------------------------------


def test_a_vote_is_stored_and_read_back(site: Any) -> None:
    answer = an_answer(site)
    body = {"response_id": answer, "label": False, "comment": "no", "tags": ["rude"], "user": "ann"}
    response = site.http("POST", "/v1/feedback", json=body)
    assert response.status_code == 201
    stored = response.json()
    assert (stored["object"], stored["model"], stored["effective"]) == ("feedback", "helper/3", True)
    assert {key: stored[key] for key in body} == body
    assert site.http("GET", f"/v1/feedback/{stored['id']}").json() == stored
    assert site.http("GET", f"/v1/feedback?response_id={answer}").json()["data"] == [stored]


def test_replay_and_conflict(site: Any) -> None:
    answer = an_answer(site)
    headers = {"Idempotency-Key": f"key-{answer}"}
    votes = [{"response_id": answer, "label": label} for label in (True, True, False)]
    first, again, other = (site.http("POST", "/v1/feedback", json=vote, headers=headers) for vote in votes)
    assert (first.status_code, again.status_code, other.status_code) == (201, 200, 409)
    assert (again.headers["idempotent-replayed"], again.json()) == ("true", first.json())
    assert "idempotent-replayed" not in first.headers
    assert (other.headers["x-should-retry"], error_of(other)["code"]) == ("false", "idempotency_conflict")


def test_withdrawing(site: Any) -> None:
    vote = site.http("POST", "/v1/feedback", json={"response_id": an_answer(site), "label": True}).json()
    gone = site.http("DELETE", f"/v1/feedback/{vote['id']}").json()
    assert gone == {"id": vote["id"], "object": "feedback", "deleted": True}
    assert site.http("GET", f"/v1/feedback/{vote['id']}").json()["effective"] is False


def test_listing_pages(site: Any) -> None:
    answer = an_answer(site)
    for user in "abc":
        site.http("POST", "/v1/feedback", json={"response_id": answer, "label": True, "user": user})
    page = site.http("GET", f"/v1/feedback?response_id={answer}&limit=2").json()
    assert (len(page["data"]), page["has_more"]) == (2, True)
    rest = site.http("GET", f"/v1/feedback?response_id={answer}&after={page['last_id']}").json()
    assert ([v["user"] for v in rest["data"]], rest["has_more"]) == (["c"], False)


def test_the_stock_client_votes(site: Any) -> None:
    answer = an_answer(site)
    updated = site.client.chat.completions.update(answer, metadata={"feedback": "down"})
    assert (updated.id, updated.choices[0].message.content, updated.metadata) == (
        answer, "Hi there", {"feedback": "down"},
    )  # fmt: skip
    posted: Any = site.client.post("/feedback", body={"response_id": answer, "label": True}, cast_to=object)
    assert posted["label"] is True
    assert [e.vote.label for e in site.log.list_votes(response_id=answer)[0]] == [False, True]
    with pytest.raises(openai.BadRequestError, match="feedback"):
        site.client.chat.completions.update(answer, metadata={"mood": "up"})
    with pytest.raises(openai.NotFoundError):
        site.client.chat.completions.update("chatcmpl-no", metadata={"feedback": "up"})


def test_batch_answers_per_line(site: Any) -> None:
    answer = an_answer(site)
    good = {"response_id": answer, "label": True, "idempotency_key": f"batch-{answer}"}
    lines = [good, "not json", {"response_id": "no", "label": True}, {"response_id": answer}, good, [1]]
    content = "\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines) + "\n\n"
    result = site.http("POST", "/v1/feedback/batch", content=content).json()
    assert [(r["line"], r["status"]) for r in result["data"]] == [
        (1, 201), (2, 400), (3, 404), (4, 422), (5, 200), (6, 400),
    ]  # fmt: skip
    assert (result["created"], result["replayed"], result["rejected"]) == (1, 1, 4)
    assert result["data"][0]["id"] == result["data"][4]["id"]
    assert result["data"][3]["error"]["param"] == "label"


def test_a_bad_line_never_fails_the_others(site: Any) -> None:
    good = {"response_id": an_answer(site), "label": True}
    bad: list[tuple[dict[str, Any], str | None]] = [
        ({"idempotency_key": "\ud800"}, "idempotency_key"),
        ({"idempotency_key": "a\0"}, "idempotency_key"),
        ({"idempotency_key": ""}, "idempotency_key"),
        ({"idempotency_key": "k" * 256}, "idempotency_key"),
        ({"idempotency_key": 7}, "idempotency_key"),
        ({"comment": "\0"}, "comment"),
        ({"metadata": {"x": ["\udfff"]}}, "metadata"),
        ({"tags": ["a", "\0"]}, "tags"),
        ({"feedback_token": "\ud800"}, "feedback_token"),
        ({"\ud800": 1}, None),
    ]
    content = "\n".join(json.dumps({**good, **fields}) for fields in [*(fields for fields, _ in bad), {}])
    response = site.http("POST", "/v1/feedback/batch", content=content)
    results = response.json()["data"]
    assert [(r["status"], r["error"]["param"]) for r in results[:-1]] == [(422, param) for _, param in bad]
    assert results[-1]["status"] == 201


def test_many_lines_are_parsed_and_too_many_refused(site: Any) -> None:
    line = b'{"response_id": "no", "label": true}\n'
    result = site.http("POST", "/v1/feedback/batch", content=b"\n" + line * 1200).json()
    assert ([r["line"] for r in result["data"]], result["rejected"]) == (list(range(2, 1202)), 1200)
    response = site.http("POST", "/v1/feedback/batch", content=b"{}\n" * 10_001)
    assert (response.status_code, error_of(response)["code"]) == (413, "body_too_large")
    assert "10000 lines" in response.json()["error"]["message"]
    assert site.http("POST", "/v1/feedback/batch", content=b"{}\n" * 10_000).status_code == 200


@pytest.mark.parametrize("key", ["", "k" * 256])
def test_keys_in_the_header_are_checked(site: Any, key: str) -> None:
    vote = {"response_id": an_answer(site), "label": True}
    response = site.http("POST", "/v1/feedback", json=vote, headers={"Idempotency-Key": key})
    assert (response.status_code, error_of(response)["param"]) == (422, "Idempotency-Key")


def test_an_update_that_cannot_be_said_back_is_refused(site: Any) -> None:
    path = f"/v1/chat/completions/{an_answer(site)}"
    for metadata in ({"feedback": "up", "x": "\ud800"}, {"feedback": "up", "\ud800": 1}):
        content = json.dumps({"metadata": metadata})
        assert site.http("POST", path, content=content, headers=JSON).status_code == 422
    unknown = site.http("POST", "/v1/chat/completions/a%00b", json={"metadata": {"feedback": "up"}})
    assert (unknown.status_code, error_of(unknown)["code"]) == (404, "not_found")


# --- with the real engine ---------------------------------------------------------------------------------------------


def test_the_embedded_engine_behind_the_api(tiny_dir: Path, open_site: Any) -> None:
    engine = HFEngine(tiny_dir, context_window=512)
    asyncio.run(engine.start())
    try:
        client = open_site(engine=engine).client
        options: Any = {"model": "helper", "messages": HI, "temperature": 0, "max_tokens": 12}
        whole = client.chat.completions.create(**options)
        chunks = client.chat.completions.create(**options, stream=True)
        streamed = "".join(c.choices[0].delta.content or "" for c in chunks)
        assert whole.choices[0].message.content == streamed
        assert whole.usage is not None
        assert whole.usage.completion_tokens <= 12
    finally:
        asyncio.run(engine.stop())


def test_a_directory_without_a_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"config\.json"):
        describe(ServeArgs(model_id="x/1", model_dir=tmp_path, storage=tmp_path))
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ModelError, match="context_window"):
        describe(ServeArgs(model_id="x/1", model_dir=tmp_path, storage=tmp_path))
