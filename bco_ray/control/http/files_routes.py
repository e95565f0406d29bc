"""`/v1/files`: uploads, as the stock OpenAI client sends, lists, reads and deletes them."""

from __future__ import annotations

import asyncio
import re
import unicodedata
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import asynccontextmanager
from typing import IO, Annotated, Any, Protocol
from urllib.parse import quote

from fastapi import APIRouter, Depends, Query, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from starlette.datastructures import FormData, UploadFile
from starlette.exceptions import HTTPException

from bco_ray.control.files import FileInUseError, FileStore, InvalidFileError, Order, StoredFile
from bco_ray.control.http.replies import File
from bco_ray.errors import StorageError
from bco_ray.storage.feedback_rows import NotFoundError
from bco_ray.storage.log_names import extension_of
from bco_ray.web.errors import UNSUPPORTED, ApiError
from bco_ray.web.openapi import about
from bco_ray.web.pages import page
from bco_ray.web.replies import Deleted, page_of

MAX_UPLOAD_BYTES = 512 << 20
"""Of the body of `POST /v1/files`: for Edge (`larger`)."""

PURPOSES = frozenset({"fine-tune"})

Limit = Annotated[int, Query(ge=1, le=10_000)]
Purpose = Annotated[str | None, Query(pattern="^[a-z_-]{1,64}$")]

_BLOCK_BYTES = 1 << 20
_MAX_FIELDS = 8
_MAX_NAME = 255
_UNNAMEABLE = frozenset({"Cc", "Cs", "Zl", "Zp"})
"""Unicode's categories of control characters, half surrogate pairs and separators of lines."""

_FORM: dict[str, Any] = {
    "type": "object",
    "required": ["file", "purpose"],
    "properties": {
        "file": {"type": "string", "format": "binary"},
        "purpose": {"type": "string", "enum": sorted(PURPOSES)},
    },
}
_UPLOAD = {"requestBody": {"required": True, "content": {"multipart/form-data": {"schema": _FORM}}}}
"""For the schema. We read the form ourselves: FastAPI would take in half a gigabyte before asking who sends it."""


class _Bytes(StreamingResponse):
    media_type = "application/octet-stream"


class Caller(Protocol):
    """Who asks, as the dependencies say."""

    @property
    def project(self) -> str:
        """Whose files these are."""

    @property
    def key_id(self) -> str:
        """For the audit log."""


def router(store: FileStore, *, caller: Callable[..., Any], submit: Callable[..., Any]) -> APIRouter:
    """All routes. `caller` and `submit` are dependencies that return a Caller or raise: who may read, who may write."""
    routes = APIRouter(prefix="/v1/files", tags=["files"])

    @routes.post("", **about("createFile", "Upload a log of votes; it is checked as it comes", File, 400, also=_UPLOAD))
    async def upload(request: Request, who: Caller = Depends(submit)) -> Response:
        async with _form(request) as form:
            purpose, name, content = _purpose(form), *_file(form)
            stored = await asyncio.to_thread(_add, store, who, name, purpose, content)
        return JSONResponse(_wire(stored))

    @routes.get("", **about("listFiles", "Uploads of the project", page_of(File), 400))
    async def list_files(
        purpose: Purpose = None,
        order: Order = "desc",
        after: str | None = None,
        limit: Limit = 10_000,
        who: Caller = Depends(caller),
    ) -> Response:
        where = {"purpose": purpose, "order": order, "after": after, "limit": limit}
        return JSONResponse(await asyncio.to_thread(_page, store, who.project, where))

    @routes.get("/{file_id}", **about("retrieveFile", "An upload", File, 404))
    async def get_file(file_id: str, who: Caller = Depends(caller)) -> Response:
        return JSONResponse(_wire(await asyncio.to_thread(store.get, who.project, file_id)))

    @routes.get("/{file_id}/content", response_class=_Bytes, **about("downloadFile", "Its content", None, 404))
    async def get_content(file_id: str, who: Caller = Depends(caller)) -> Response:
        stored, file = await asyncio.to_thread(_opened, store, who.project, file_id)
        return _Bytes(_blocks(file), headers=_download(stored))

    @routes.delete("/{file_id}", **about("deleteFile", "Delete an upload", Deleted, 404))
    async def delete_file(file_id: str, who: Caller = Depends(submit)) -> Response:
        await asyncio.to_thread(_delete, store, who, file_id)
        return JSONResponse({"id": file_id, "object": "file", "deleted": True})

    return routes


@asynccontextmanager
async def _form(request: Request) -> AsyncGenerator[FormData]:
    """The form that was sent, a large file in it on disk. Raises ApiError."""
    if not request.headers.get("content-type", "").lower().startswith("multipart/form-data"):
        raise ApiError(400, "Send multipart/form-data with the fields file and purpose.", code="invalid_form")
    try:
        form = await request.form(max_files=1, max_fields=_MAX_FIELDS)
    except HTTPException as error:
        if error.status_code != 400:
            raise
        raise ApiError(400, f"The form cannot be read: {error.detail}", code="invalid_form") from None
    except UnicodeError:  # it may name its own character set
        raise ApiError(400, "The form cannot be read: send its fields as UTF-8.", code="invalid_form") from None
    try:
        yield form
    finally:
        await form.close()


def _purpose(form: FormData) -> str:
    """Raises ApiError; also for an expiry that was asked for: keeping the file for ever is not what was meant."""
    if any(name.startswith("expires_after") for name in form):
        message = "expires_after is not supported: files stay until they are deleted."
        raise ApiError(400, message, code=UNSUPPORTED, param="expires_after")
    purpose = form.get("purpose")
    if not isinstance(purpose, str):
        raise ApiError(422, "purpose: Field required", code="invalid_field", param="purpose")
    if purpose not in PURPOSES:
        message = f"purpose: {purpose[:64]!r} is not supported; use {', '.join(sorted(PURPOSES))}."
        raise ApiError(400, message, code="invalid_field", param="purpose")
    return purpose


def _file(form: FormData) -> tuple[str, IO[bytes]]:
    """Name and content. Raises ApiError."""
    file = form.get("file")
    if not isinstance(file, UploadFile):
        raise ApiError(422, "file: Send a file with a file name.", code="invalid_field", param="file")
    return _name(file.filename or ""), file.file


def _name(given: str) -> str:
    """The last part of a path, cut to 255 characters so that its extension stays. Raises ApiError."""
    name = re.split(r"[/\\]", given)[-1]
    if not name.strip() or any(unicodedata.category(character) in _UNNAMEABLE for character in name):
        message = "file: Its name must not be empty, nor hold control characters."
        raise ApiError(422, message, code="invalid_field", param="file")
    stem = len(name) - len(extension_of(name))
    return name[: min(stem, _MAX_NAME - (len(name) - stem))] + name[stem:]


def _add(store: FileStore, who: Caller, name: str, purpose: str, content: IO[bytes]) -> StoredFile:
    """Raises ApiError."""
    try:
        chunks = iter(lambda: content.read(_BLOCK_BYTES), b"")
        return store.add(who.project, name, purpose, chunks, actor=who.key_id)
    except InvalidFileError as error:
        raise ApiError(400, str(error), code="invalid_file", param="file") from None


def _delete(store: FileStore, who: Caller, file_id: str) -> None:
    """Raises ApiError."""
    try:
        store.delete(who.project, file_id, actor=who.key_id)
    except FileInUseError as error:
        raise ApiError(409, str(error), code="file_in_use", headers={"x-should-retry": "false"}) from None


def _page(store: FileStore, project: str, where: dict[str, Any]) -> dict[str, Any]:
    """Raises ApiError."""
    try:
        found, more = store.list(project, **where)
    except NotFoundError as error:
        raise ApiError(400, f"after: {error}", code="invalid_field", param="after") from None
    return page([_wire(stored) for stored in found], has_more=more)


def _opened(store: FileStore, project: str, file_id: str) -> tuple[StoredFile, IO[bytes]]:
    """Open, so that it can be read to its end though somebody deletes it meanwhile."""
    stored, path = store.get(project, file_id), store.open(project, file_id)
    try:
        return stored, path.open("rb")
    except OSError as error:
        raise StorageError(f"{path}: cannot be read ({error.strerror}).") from error


def _blocks(file: IO[bytes]) -> Iterator[bytes]:
    with file:
        yield from iter(lambda: file.read(_BLOCK_BYTES), b"")


def _download(stored: StoredFile) -> dict[str, str]:
    """Nothing of a name gets through `quote` that could end a header's value, and no browser guesses what this is."""
    return {
        "content-disposition": f"attachment; filename*=UTF-8''{quote(stored.filename, safe='')}",
        "content-length": str(stored.bytes),
        "x-content-type-options": "nosniff",
    }


def _wire(stored: StoredFile) -> dict[str, Any]:
    """OpenAI's file object."""
    return {
        "id": stored.id,
        "object": "file",
        "bytes": stored.bytes,
        "created_at": int(stored.created_at),
        "filename": stored.filename,
        "purpose": stored.purpose,
        "status": stored.status,
        "expires_at": None,
        "status_details": stored.status_details,
    }
