"""The OpenAPI document: what each route takes and answers, with the limits in force."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from fastapi.routing import APIRoute
from prometheus_client import CONTENT_TYPE_LATEST
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema
from teacher_proto.types import ServerLimits

from teacher_server.http.body import MOST
from teacher_server.http.models import ErrorBody, RenderBody, ScoreBody, ScoreReplyBody, examples
from teacher_server.http.models.replies import (
    DroppedReply,
    LevelsReply,
    RegisteredListReply,
    RenderReplyBody,
    ServerReply,
    StatusReply,
)

REFERENCE = "#/components/schemas/{model}"
JSON = "application/json"
ERRORS = {
    400: "The request is wrong or over a limit.",
    401: "No credentials in force.",
    403: "The credentials do not allow this.",
    404: "No such teacher.",
    412: "Tokenizer or identity do not match.",
    413: "The body is too large.",
    415: "The body is not declared as JSON, or compressed.",
    429: "Overload; Retry-After is the time to wait.",
    500: "The server failed.",
    503: "Not ready.",
    504: "The time given was not enough.",
}
# Of whatever needs credentials.
DOOR = (401, 500, 503)
ABOUT = """Every path and method needs credentials where the server has any: a bearer token, or a
client certificate over TLS. Only `/livez`, `/readyz` and the files of the pages at `/` and `/docs`
do not. A path that does not exist is 404, a method that a path does not have 405, and what is no
HTTP or leaves no room is refused before any route; all of these as `ErrorBody`. `/docs` shows this
document to try it out, and `/` what a teacher thinks of a text."""
SECURITY = {
    "bearer": {"type": "http", "scheme": "bearer", "description": "Token of a run."},
    "certificate": {"type": "mutualTLS", "description": "Certificate of a run."},
}
TOKENIZER_FILE: dict[str, Any] = {
    "type": "object",
    "description": "A tokenizer.json as the tokenizers library writes it.",
    "required": ["model"],
    "properties": {
        "model": {"type": "object", "description": "Its model, vocabulary and merges."},
        "added_tokens": {"type": "array", "items": {"type": "object"}},
    },
}
ROLES = {
    "description": "Of special ids, such as 151645:TURN_END.",
    "items": {"type": "string", "pattern": "^[0-9]+:[A-Z_]+$"},
}


@dataclass(frozen=True)
class Operation:
    """What a route does with one method.

    Attributes:
        reply: of 200: a model, or the type of a text.
        errors: statuses besides, those of the door left out.
        parameters: name -> what is added to a parameter's schema.
        examples: of the body, by name.
    """

    reply: type[BaseModel] | str
    says: str
    body: type[BaseModel] | dict[str, Any] | None = None
    errors: tuple[int, ...] = ()
    public: bool = False
    parameters: Mapping[str, dict[str, Any]] = field(default_factory=dict)
    examples: Mapping[str, dict[str, Any]] = field(default_factory=dict)


RUN = {"run": {"maxLength": 256, "description": "The credentials' run, which may be left out."}}
HASH = {"tokenizer_hash": {"description": "Its fingerprint."}}
TEACHER = {"teacher": {"description": "One by its name; empty: every one."}}
LIVE = Operation(StatusReply, "The process is alive.", public=True)
READY = Operation(StatusReply, "The server takes work.", errors=(503,), public=True)
OPERATIONS: dict[tuple[str, str], Operation] = {
    ("post", "/v1/score"): Operation(
        ScoreReplyBody,
        "The rows.",
        ScoreBody,
        (400, 403, 404, 412, 413, 415, 429, 504),
        examples=examples.SCORE,
    ),
    ("post", "/v1/render"): Operation(
        RenderReplyBody,
        "The prompts as the teacher reads them.",
        RenderBody,
        (400, 403, 404, 413, 415, 429, 504),
        examples=examples.RENDER,
    ),
    ("get", "/v1/teacher"): Operation(
        ServerReply, "Teachers and limits.", errors=(403, 404), parameters=TEACHER
    ),
    ("post", "/v1/tokenizers"): Operation(
        LevelsReply,
        "It is registered.",
        TOKENIZER_FILE,
        (400, 403, 412, 413, 415, 429, 504),
        parameters=RUN | {"role": ROLES},
    ),
    ("get", "/v1/tokenizers"): Operation(
        RegisteredListReply, "What is registered.", errors=(400, 403), parameters=RUN
    ),
    ("delete", "/v1/tokenizers"): Operation(
        DroppedReply, "Whether there was one.", errors=(400, 403), parameters=RUN | HASH
    ),
    ("get", "/livez"): LIVE,
    ("head", "/livez"): LIVE,
    ("get", "/readyz"): READY,
    ("head", "/readyz"): READY,
    ("get", "/metrics"): Operation(CONTENT_TYPE_LATEST, "Prometheus' text format."),
}


def make_document(app: FastAPI, limits: ServerLimits, guarded: bool) -> dict[str, Any]:
    """Of the routes that ``app`` has; KeyError for one that ``OPERATIONS`` does not describe.

    Args:
        guarded: whether there are credentials.
    """
    document = get_openapi(
        title=app.title, version=app.version, description=ABOUT, routes=app.routes
    )
    for route in app.routes:
        methods = (route.methods or set()) if isinstance(route, APIRoute) else set()
        if isinstance(route, APIRoute) and (route.include_in_schema or "HEAD" in methods):
            for method in map(str.lower, methods):
                path = document["paths"][route.path_format]
                own = path.setdefault(method, _like(path.get("get", {}), method))
                operation = OPERATIONS[method, route.path_format]
                _describe(own, operation, method)
                own["security"] = _security(operation, guarded)
    models = {one.reply for one in OPERATIONS.values() if not isinstance(one.reply, str)}
    bodies = [one.body for one in OPERATIONS.values() if isinstance(one.body, type)]
    _, definitions = models_json_schema(
        [(one, "validation") for one in bodies]
        + [(one, "serialization") for one in sorted(models, key=lambda one: one.__name__)]
        + [(ErrorBody, "serialization")],
        ref_template=REFERENCE,
    )
    schemas = definitions["$defs"]
    _bound(schemas, limits)
    document["components"] = {"schemas": schemas, "securitySchemes": SECURITY}
    return document


def install_schema(app: FastAPI, limits: ServerLimits, *, guarded: bool) -> None:
    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = make_document(app, limits, guarded)
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]


def _like(operation: Mapping[str, Any], method: str) -> dict[str, Any]:
    """An operation of another method that answers the same."""
    name = str(operation.get("operationId", ""))
    return {**operation, "operationId": f"{name.rpartition('_')[0]}_{method}"}


def _describe(own: dict[str, Any], operation: Operation, method: str) -> None:
    if operation.body is not None:
        content = _content(operation.body)
        own["requestBody"] = {"required": True, "content": content}
        if operation.examples:
            content[JSON]["examples"] = dict(operation.examples)
    for parameter in own.get("parameters", ()):
        parameter["schema"] |= operation.parameters.get(parameter["name"], {})
    statuses = operation.errors if operation.public else sorted({*DOOR, *operation.errors})
    own["responses"] = {"200": {"description": operation.says}}
    for status in statuses:
        own["responses"][str(status)] = {"description": ERRORS[status]}
    if method != "head":  # of which a reply has no body
        own["responses"]["200"]["content"] = _content(operation.reply)
        for status in statuses:
            own["responses"][str(status)]["content"] = _content(ErrorBody)


def _security(operation: Operation, guarded: bool) -> list[dict[str, list[str]]]:
    """Any of these is enough; an empty one says that none is needed."""
    if operation.public:
        return []
    shown: list[dict[str, list[str]]] = [{name: []} for name in SECURITY]
    return shown if guarded else [*shown, {}]


def _content(of: type[BaseModel] | dict[str, Any] | str) -> dict[str, Any]:
    if isinstance(of, str):
        return {of: {"schema": {"type": "string"}}}
    if isinstance(of, dict):
        return {JSON: {"schema": of}}
    return {JSON: {"schema": {"$ref": REFERENCE.format(model=of.__name__)}}}


def _bound(schemas: dict[str, Any], limits: ServerLimits) -> None:
    """Adds to the fields of bodies what the settings allow."""
    ids = min(limits.max_request_tokens, MOST.values)
    lists = {
        ("ScoreBody", "continuations"): limits.max_continuations,
        ("RenderBody", "prompts"): limits.max_render_prompts,
        ("ContinuationBody", "token_ids"): ids,
        ("ContinuationBody", "rows"): ids,
        ("ContinuationBody", "explicit_ids"): min(ids, MOST.arrays),
        ("SegmentBody", "token_ids"): ids,
        ("PromptBody", "token_ids"): ids,
        ("PromptBody", "messages"): MOST.objects,
    }
    for (model, name), most in lists.items():
        schemas[model]["properties"][name]["maxItems"] = most
    for model, name in lists:
        items = schemas[model]["properties"][name].get("anyOf", [{}])[0].get("items", {})
        if items.get("type") == "integer":
            items["minimum"] = 0
    lines = schemas["ContinuationBody"]["properties"]["explicit_ids"]["anyOf"][0]["items"]
    lines |= {"minItems": 1, "maxItems": limits.max_explicit_ids}
    lines["items"]["minimum"] = -1
    # A character is one byte or more.
    for model in ("PromptBody", "ContinuationBody", "SegmentBody"):
        schemas[model]["properties"]["text"]["maxLength"] = limits.max_text_bytes
