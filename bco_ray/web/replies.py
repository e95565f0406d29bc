"""What all replies are made of, field by field: documentation that the tests hold every answer to.

What is sent is built elsewhere (`pages`, `errors` and the `wire` modules).
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, create_model


class Reply(BaseModel):
    """What a route answers: these fields, and no others."""

    model_config = ConfigDict(extra="forbid", protected_namespaces=())


class Page(Reply):
    """A list. The next page: `after` the `last_id`."""

    object: Literal["list"]
    data: list[Any]
    has_more: bool
    first_id: str | None
    last_id: str | None


def page_of(item: type[Reply]) -> type[Page]:
    """`FilePage` for files. (A generic's name would be `Page_File_` in the document.)"""
    return create_model(f"{item.__name__}Page", __base__=Page, __doc__=Page.__doc__, data=(list[item], ...))  # type: ignore[valid-type]


class Deleted(Reply):
    """It is gone."""

    id: str
    object: str
    deleted: Literal[True]


class Error(Reply):
    """`code` for programs, `message` for people; `param` names the field."""

    message: str
    type: Literal["invalid_request_error", "rate_limit_error", "insufficient_quota", "server_error"]
    param: str | None
    code: str | None


class ErrorReply(Reply):
    """Every error."""

    error: Error
