"""`/v1/files` as the stock client drives it, and as somebody hostile does."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import openai
import pytest
from fastapi import FastAPI, Header
from fastapi.testclient import TestClient

from bco_ray.control.files import FileStore
from bco_ray.control.http.files_routes import MAX_UPLOAD_BYTES, router
from bco_ray.storage.database import open_database
from bco_ray.web import errors
from bco_ray.web.edge import MAX_BODY_BYTES, Edge
from bco_ray.web.errors import ApiError

LINE = json.dumps({"prompt": "hi", "completion": "hello", "label": True}).encode() + b"\n"
LIMIT_BYTES = 100_000
UNKNOWN = f"file-{'0' * 24}"


@dataclass(frozen=True)
class Who:
    project: str
    key_id: str = "key1"


def caller(x_project: str = Header("acme")) -> Who:
    return Who(x_project)


def submit(x_project: str = Header("acme")) -> Who:
    if x_project == "readers":
        raise ApiError(403, "This key may only read.", code="forbidden")
    return Who(x_project)


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "files"


@pytest.fixture
def app(tmp_path: Path, directory: Path) -> FastAPI:
    api = FastAPI()
    errors.install(api)
    larger = {"/v1/files": LIMIT_BYTES}
    api.add_middleware(Edge, served=lambda *_: None, send_request_id=True, larger=larger)
    api.include_router(router(FileStore(open_database(tmp_path), directory), caller=caller, submit=submit))
    return api


@pytest.fixture
def client(app: FastAPI) -> Iterator[TestClient]:
    with TestClient(app) as found:
        yield found


@pytest.fixture
def stock(app: FastAPI) -> Iterator[openai.OpenAI]:
    with TestClient(app) as http:
        yield openai.OpenAI(base_url="http://test/v1", api_key="x", http_client=http, max_retries=0)


def upload(client: TestClient, name: str = "votes.jsonl", content: bytes = LINE, **more: Any) -> Any:
    return client.post("/v1/files", files={"file": (name, content)}, data={"purpose": "fine-tune"}, **more)


def raw_upload(client: TestClient, disposition: bytes, content_type: str = "multipart/form-data; boundary=b") -> Any:
    purpose = b'--b\r\ncontent-disposition: form-data; name="purpose"\r\n\r\nfine-tune\r\n'
    file = b"--b\r\ncontent-disposition: " + disposition + b"\r\n\r\n" + LINE + b"\r\n--b--\r\n"
    return client.post("/v1/files", content=purpose + file, headers={"content-type": content_type})


def problem(reply: Any) -> tuple[int, str, str]:
    error = reply.json()["error"]
    return reply.status_code, error["code"], error["param"]


# --- the stock client -------------------------------------------------------------------------------------------------


def test_the_stock_client(stock: openai.OpenAI, tmp_path: Path) -> None:
    (tmp_path / "votes.jsonl").write_bytes(LINE)
    made = stock.files.create(file=tmp_path / "votes.jsonl", purpose="fine-tune")
    assert stock.files.retrieve(made.id) == made
    assert stock.files.wait_for_processing(made.id).status == "processed"
    assert (made.object, made.filename, made.bytes, made.purpose) == ("file", "votes.jsonl", len(LINE), "fine-tune")
    assert (made.expires_at, made.status_details) == (None, None)
    assert stock.files.content(made.id).content == LINE
    assert stock.files.list(purpose="fine-tune").data == [made]
    assert stock.files.delete(made.id).to_dict() == {"id": made.id, "object": "file", "deleted": True}
    with pytest.raises(openai.NotFoundError):
        stock.files.retrieve(made.id)


def test_it_pages(stock: openai.OpenAI) -> None:
    ids = [stock.files.create(file=("a.csv", b"prompt,label\nhi,1\n"), purpose="fine-tune").id for _ in range(5)]
    assert [file.id for file in stock.files.list(limit=2)] == ids[::-1]
    assert [file.id for file in stock.files.list(limit=2, order="asc")] == ids
    for file in stock.files.list(limit=2):
        stock.files.delete(file.id)
    assert stock.files.list().data == []


def test_it_hears_why(stock: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="votes.jsonl, line 2: not JSON") as raised:
        stock.files.create(file=("votes.jsonl", LINE + b"{"), purpose="fine-tune")
    assert (raised.value.code, raised.value.param) == ("invalid_file", "file")
    with pytest.raises(openai.BadRequestError, match="assistants") as raised:
        stock.files.create(file=("votes.jsonl", LINE), purpose="assistants")
    assert raised.value.param == "purpose"
    with pytest.raises(openai.BadRequestError, match="expires_after") as raised:
        stock.files.create(
            file=("v.jsonl", LINE), purpose="fine-tune", expires_after={"anchor": "created_at", "seconds": 3600}
        )
    assert raised.value.code == "unsupported_parameter"


# --- shapes -----------------------------------------------------------------------------------------------------------


def test_the_exact_fields(client: TestClient) -> None:
    made = upload(client).json()
    fields = "id object bytes created_at filename purpose status expires_at status_details"
    assert list(made) == fields.split()
    assert isinstance(made["created_at"], int)
    listed = client.get("/v1/files").json()
    assert listed == {
        "object": "list", "data": [made], "has_more": False, "first_id": made["id"], "last_id": made["id"]
    }  # fmt: skip


@pytest.mark.parametrize(
    ("query", "status", "param"),
    [
        (f"after={UNKNOWN}", 400, "after"),
        ("after=%00", 400, "after"),
        ("limit=0", 422, "query.limit"),
        ("order=up", 422, "query.order"),
        ("purpose=%00", 422, "query.purpose"),
    ],
)
def test_what_cannot_be_listed(client: TestClient, query: str, status: int, param: str) -> None:
    assert problem(client.get(f"/v1/files?{query}")) == (status, "invalid_field", param)


def test_forms_that_are_none(client: TestClient) -> None:
    assert problem(client.post("/v1/files", json={})) == (400, "invalid_form", None)
    assert problem(client.post("/v1/files", data={"purpose": "fine-tune"})) == (400, "invalid_form", None)
    assert problem(client.post("/v1/files", files={"file": ("a.jsonl", LINE)})) == (422, "invalid_field", "purpose")
    empty = {"purpose": (None, "fine-tune")}
    assert problem(client.post("/v1/files", files=empty)) == (422, "invalid_field", "file")
    text = {**empty, "file": (None, "text")}
    assert problem(client.post("/v1/files", files=text)) == (422, "invalid_field", "file")
    two = [("file", ("a.jsonl", LINE))] * 2
    assert problem(client.post("/v1/files", files=two)) == (400, "invalid_form", None)
    many = {f"field{number}": (None, "x") for number in range(20)}
    assert problem(client.post("/v1/files", files=many)) == (400, "invalid_form", None)
    for header in ("multipart/form-data", "multipart/form-data; boundary=other"):
        reply = client.post("/v1/files", content=b"--b\r\n", headers={"content-type": header})
        assert problem(reply) == (400, "invalid_form", None)
    assert client.get("/v1/files").json()["data"] == []


@pytest.mark.parametrize("charset", ["undefined", "idna", "hex", "nope", "utf-7", "utf-16"])
def test_its_own_character_set(client: TestClient, charset: str) -> None:
    kind = f"multipart/form-data; boundary=b; charset={charset}"
    reply = raw_upload(client, b'form-data; name="file"; filename="a.jsonl"', kind)
    assert reply.status_code in {200, 400, 422}


# --- hostile ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "kept"),
    [
        ("../../../etc/passwd.jsonl", "passwd.jsonl"),
        ("/abs/olute.jsonl", "olute.jsonl"),
        ("C:\\temp\\..\\x.jsonl", "x.jsonl"),
        ("..jsonl", "..jsonl"),
        ("%2e%2e%2fx.jsonl", "%2e%2e%2fx.jsonl"),
        ("a;b=c'd, é 名前.jsonl", "a;b=c'd, é 名前.jsonl"),
        ("<script>.jsonl", "<script>.jsonl"),
        ("x" * 300 + ".JSONL", "x" * 249 + ".JSONL"),
    ],
)
def test_names_are_words_and_no_paths(client: TestClient, directory: Path, name: str, kept: str) -> None:
    reply = upload(client, name)
    assert (reply.status_code, reply.json()["filename"]) == (200, kept)
    file_id = reply.json()["id"]
    inside = {path.relative_to(directory).as_posix() for path in directory.rglob("*")}
    assert inside == {file_id, f"{file_id}/content.jsonl"}
    headers = client.get(f"/v1/files/{file_id}/content").headers
    start, quoted = headers["content-disposition"].split("''")
    assert start == "attachment; filename*=UTF-8"
    assert set(quoted) <= set("%-._~0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ")
    assert unquote(quoted) == kept


def test_a_name_with_quotes(client: TestClient) -> None:
    reply = raw_upload(client, b'form-data; name="file"; filename="a\\"; x=\\"b.jsonl"')
    assert reply.json()["filename"] == 'a"; x="b.jsonl'
    content = client.get(f"/v1/files/{reply.json()['id']}/content")
    assert content.headers["content-disposition"] == "attachment; filename*=UTF-8''a%22%3B%20x%3D%22b.jsonl"


@pytest.mark.parametrize(
    "name", ["a\tb.jsonl", "a\x1bb.jsonl", "a\x7f.jsonl", "a\u2028b.jsonl", "a\u0085.jsonl", "", "x/", " "]
)
def test_names_that_are_refused(client: TestClient, directory: Path, name: str) -> None:
    reply = raw_upload(client, b'form-data; name="file"; filename="' + name.encode() + b'"')
    assert reply.status_code in {400, 422}
    assert reply.json()["error"]["code"] in {"invalid_field", "invalid_form"}
    assert not directory.exists()


@pytest.mark.parametrize(
    "disposition",
    [
        b"form-data; name=file; filename*=UTF-8''a%0d%0aset-cookie:x.jsonl",
        b'form-data; name="file"; filename="a\r\nset-cookie: x.jsonl"',
        b'form-data; name="file"; filename="a\0.jsonl"',
        b'form-data; filename="a.jsonl"',
        b"",
    ],
)
def test_headers_cannot_be_injected(client: TestClient, disposition: bytes) -> None:
    reply = raw_upload(client, disposition)
    assert reply.status_code in {400, 422}
    assert "set-cookie" not in reply.headers


def test_content_is_only_ever_a_download(client: TestClient) -> None:
    packed = gzip.compress(LINE)
    file_id = upload(client, "a.jsonl.gz", packed).json()["id"]
    reply = client.get(f"/v1/files/{file_id}/content", headers={"range": "bytes=2-1"})
    assert (reply.status_code, reply.content) == (200, packed)
    assert reply.headers["content-type"] == "application/octet-stream"
    assert reply.headers["x-content-type-options"] == "nosniff"
    assert reply.headers["content-length"] == str(len(packed))
    assert "content-encoding" not in reply.headers


@pytest.mark.parametrize("path", ["%2e%2e", "..%2f..%2fbco.db", "file-%00", UNKNOWN, "x" * 5000, "%F0%9F%98%80"])
def test_ids_are_no_paths(client: TestClient, path: str) -> None:
    upload(client)
    for reply in (
        client.get(f"/v1/files/{path}"), client.get(f"/v1/files/{path}/content"), client.delete(f"/v1/files/{path}")
    ):  # fmt: skip
        assert problem(reply)[0] in {404, 405}
    assert len(client.get("/v1/files").json()["data"]) == 1


def test_other_projects_see_nothing(client: TestClient) -> None:
    file_id, theirs = upload(client).json()["id"], {"x-project": "theirs"}

    def tried(one: str) -> list[Any]:
        replies = [
            client.get(f"/v1/files/{one}", headers=theirs),
            client.get(f"/v1/files/{one}/content", headers=theirs),
            client.delete(f"/v1/files/{one}", headers=theirs),
            client.get(f"/v1/files?after={one}", headers=theirs),
        ]
        return [(reply.status_code, reply.text.replace(one, "it")) for reply in replies]

    assert tried(file_id) == tried(UNKNOWN)
    assert [status for status, _ in tried(file_id)] == [404, 404, 404, 400]
    assert client.get("/v1/files", headers=theirs).json()["data"] == []
    assert client.get(f"/v1/files/{file_id}/content").content == LINE


def test_who_may_only_read_is_refused_before_anything_is_taken_in(client: TestClient) -> None:
    taken = 0

    def body() -> Iterator[bytes]:
        nonlocal taken
        for _ in range(3):
            taken += 1
            yield b"not even a form"

    headers = {"x-project": "readers", "content-type": "multipart/form-data; boundary=b"}
    assert problem(client.post("/v1/files", content=body(), headers=headers)) == (403, "forbidden", None)
    assert problem(client.delete(f"/v1/files/{UNKNOWN}", headers=headers)) == (403, "forbidden", None)
    assert taken == 0, "the body was read"
    client.post("/v1/files", content=body(), headers={**headers, "x-project": "acme"})
    assert taken > 0
    assert client.get("/v1/files", headers=headers).status_code == 200


# --- sizes ------------------------------------------------------------------------------------------------------------


def test_a_body_that_is_too_large(client: TestClient, directory: Path) -> None:
    reply = upload(client, content=LINE * (LIMIT_BYTES // len(LINE) + 1))
    assert problem(reply) == (413, "body_too_large", None)
    assert str(LIMIT_BYTES) in reply.json()["error"]["message"]
    assert not directory.exists()


def test_one_that_does_not_say_so(client: TestClient, directory: Path) -> None:
    def body() -> Iterator[bytes]:
        yield b'--b\r\ncontent-disposition: form-data; name="file"; filename="a.jsonl"\r\n\r\n'
        for _ in range(2 * LIMIT_BYTES // 1000):
            yield b"x" * 1000

    reply = client.post("/v1/files", content=body(), headers={"content-type": "multipart/form-data; boundary=b"})
    assert problem(reply) == (413, "body_too_large", None)
    assert not directory.exists()


def test_only_the_paths_that_are_named_take_other_sizes() -> None:
    async def answers(scope: Any, receive: Any, send: Any) -> None:
        while (await receive()).get("more_body"):
            pass
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    sizes = {"/v1/files": MAX_UPLOAD_BYTES, "/v1/jobs": 5, "/v1/jobs/": 5}
    edge = Edge(answers, served=lambda *_: None, send_request_id=True, larger=sizes)
    client, body = TestClient(edge), b" " * (MAX_BODY_BYTES + 1)
    assert client.post("/v1/files", content=body).status_code == 200
    for path in ("/v1/files/", "/v1/files/x", "/v1/feedback/batch"):
        assert client.post(path, content=body).status_code == 413
    for path in ("/v1/jobs", "/v1/jobs/", "/v1/jobs/a/retry"):
        assert client.post(path, content=b"12345").status_code == 200
        assert client.post(path, content=b"123456").status_code == 413
    assert client.post("/v1/jobsite", content=b"123456").status_code == 200
    too_much = {"content-length": str(MAX_UPLOAD_BYTES + 1)}
    assert client.post("/v1/files", headers=too_much).status_code == 413
