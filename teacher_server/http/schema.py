"""The OpenAPI document: bodies that handlers read themselves are described here."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic.json_schema import models_json_schema

from teacher_server.http.models import (
    ErrorBody,
    RenderBody,
    RenderReplyBody,
    ScoreBody,
    ScoreReplyBody,
)

REFERENCE = "#/components/schemas/{model}"


def _content(model: type) -> dict[str, Any]:
    reference = {"$ref": REFERENCE.format(model=model.__name__)}
    return {"application/json": {"schema": reference}}


SCORE_BODY: dict[str, Any] = {"requestBody": {"required": True, "content": _content(ScoreBody)}}
RENDER_BODY: dict[str, Any] = {"requestBody": {"required": True, "content": _content(RenderBody)}}
TOKENIZER_BODY: dict[str, Any] = {
    "requestBody": {"required": True, "content": {"application/json": {"schema": {}}}}
}
SCORE_REPLY: dict[str, Any] = {"description": "The rows.", "content": _content(ScoreReplyBody)}
RENDER_REPLY: dict[str, Any] = {
    "description": "The prompts as the teacher reads them.",
    "content": _content(RenderReplyBody),
}
ERRORS: dict[int | str, dict[str, Any]] = {
    code: {"description": text, "content": _content(ErrorBody)}
    for code, text in {
        400: "The request is wrong or over a limit.",
        401: "No credentials in force.",
        403: "The credentials do not allow this.",
        404: "No such teacher.",
        412: "Tokenizer or identity do not match.",
        413: "The body is too large.",
        415: "The body is not declared as JSON.",
        429: "Overload; Retry-After is the time to wait.",
        500: "The server failed.",
        503: "Not ready.",
        504: "The time given was not enough.",
    }.items()
}


def install_schema(app: FastAPI) -> None:
    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            document = get_openapi(title=app.title, version=app.version, routes=app.routes)
            _, definitions = models_json_schema(
                [
                    (ScoreBody, "validation"),
                    (ScoreReplyBody, "serialization"),
                    (RenderBody, "validation"),
                    (RenderReplyBody, "serialization"),
                    (ErrorBody, "serialization"),
                ],
                ref_template=REFERENCE,
            )
            schemas = document.setdefault("components", {}).setdefault("schemas", {})
            schemas.update(definitions["$defs"])
            app.openapi_schema = document
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]
