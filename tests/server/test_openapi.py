"""The OpenAPI document says what each route takes and answers; real answers are held to it."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
import pytest_asyncio
from fastapi.routing import APIRoute
from pydantic import BaseModel
from teacher_proto.tokenizer_hash import tokenizer_hash

from teacher_server.access.store import CredentialStore
from teacher_server.http import models
from teacher_server.http.app import make_app
from teacher_server.http.models import replies
from teacher_server.http.schema import OPERATIONS
from tests.server.running import Running, running

pytestmark = pytest.mark.asyncio(loop_scope="module")

PUBLIC = {"/livez", "/readyz"}
TIGHT = {
    "max_continuations": 3,
    "max_explicit_ids": 2,
    "max_request_tokens": 40,
    "max_text_bytes": 60,
    "max_render_prompts": 2,
    "max_request_bytes": 100_000,
}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def server(tiny_model_dir: Path) -> AsyncIterator[Running]:
    with pytest.MonkeyPatch.context() as patch:
        async with running({"default": tiny_model_dir}, patch, limits=TIGHT) as found:
            yield found


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def document(server: Running) -> dict[str, Any]:
    found: dict[str, Any] = (await server.http.get("/openapi.json")).json()
    return found


def operations(document: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            yield method, path, operation


def schemas_in(value: Any, where: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Every schema of a document, with its place."""
    if isinstance(value, list):
        for index, one in enumerate(value):
            yield from schemas_in(one, f"{where}[{index}]")
    if isinstance(value, dict):
        for name, one in value.items():
            inner = f"{where}.{name}"
            if name in ("schema", "items"):
                yield inner, one
            if name in ("properties", "schemas"):
                yield from ((f"{inner}.{key}", each) for key, each in one.items())
            yield from schemas_in(one, inner)


def body(**changes: Any) -> dict[str, Any]:
    given = {
        "prompt": {"token_ids": [1, 2, 3]},
        "continuations": [{"token_ids": [4, 5]}],
        "top_k": 2,
        "temperature": 1.0,
    }
    return given | changes


async def test_every_route_is_described(server: Running, document: dict[str, Any]) -> None:
    service, guard = server.server.service, server.server.guard
    app = make_app(service, guard, timeout_seconds=1)
    routes = {
        (method.lower(), route.path)
        for route in app.routes
        if isinstance(route, APIRoute) and route.path != "/docs"
        for method in route.methods or ()
    }
    assert {(method, path) for method, path, _ in operations(document)} == routes


async def test_a_route_without_a_description_is_an_error(server: Running) -> None:
    app = make_app(server.server.service, server.server.guard, timeout_seconds=1)

    @app.get("/v1/forgotten")
    async def forgotten() -> None: ...

    with pytest.raises(KeyError, match="forgotten"):
        app.openapi()


async def test_no_schema_is_empty_and_every_reference_leads_somewhere(
    document: dict[str, Any],
) -> None:
    found = list(schemas_in(document))
    assert len(found) > 100
    assert [where for where, schema in found if not set(schema) - {"title", "description"}] == []
    known = document["components"]["schemas"]
    for part in json.dumps(document).split('"#/components/schemas/')[1:]:
        assert part.partition('"')[0] in known


async def test_what_needs_credentials_says_so(server: Running, document: dict[str, Any]) -> None:
    schemes = document["components"]["securitySchemes"]
    assert {one["type"] for one in schemes.values()} == {"http", "mutualTLS"}
    for method, path, operation in operations(document):
        ways: list[Any] = [{name: []} for name in schemes]
        expected: list[Any] = [] if path in PUBLIC else [*ways, {}]  # this server has none
        assert operation["security"] == expected, (method, path)
        assert ("401" in operation["responses"]) == (path not in PUBLIC)
    guard = replace(
        server.server.guard, credentials=CredentialStore(None, None, certificates=False)
    )
    guarded = make_app(server.server.service, guard, timeout_seconds=1).openapi()
    assert guarded["paths"]["/v1/score"]["post"]["security"] == ways


async def test_the_document_is_openapi(document: dict[str, Any]) -> None:
    validator = pytest.importorskip("openapi_spec_validator")
    validator.validate(document)


def described(document: dict[str, Any], answer: httpx.Response) -> None:
    """Fails unless the answer is one that the document knows, and of its type and model."""
    request = answer.request
    operation = document["paths"][request.url.path][request.method.lower()]
    responses = operation["responses"]
    assert str(answer.status_code) in responses, (request.method, request.url, answer.text)
    content = responses[str(answer.status_code)].get("content")
    if request.method == "HEAD":
        assert answer.content == b""
        return
    assert list(content) == [answer.headers["content-type"]], (request.url, answer.headers)
    reference = content[answer.headers["content-type"]]["schema"].get("$ref", "")
    name = reference.rpartition("/")[2]
    if name:
        model: type[BaseModel] = getattr(replies, name)
        model.model_validate_json(answer.content)


async def test_real_answers_are_those_of_the_document(
    server: Running, document: dict[str, Any], other_tokenizer_model_dir: Path
) -> None:
    http = server.http
    file = (other_tokenizer_model_dir / "tokenizer.json").read_bytes()
    answered = set()
    for path in (
        "/livez",
        "/readyz",
        "/metrics",
        "/v1/teacher",
        "/v1/teacher?teacher=nobody",
        "/v1/tokenizers",
    ):
        answered.add(await http.get(path))
    for wrong in (
        {},
        {"top_k": -1},
        {"expected_identity": "another"},
        {"tokenizer_hash": "v2-0"},
        {"teacher": "nobody"},
        {"prompt": {"messages": [{"role": "user", "content": "hi"}]}},
        {"continuations": [{"token_ids": [4], "explicit_ids": [[1, -1]]}]},
        {"returns": {"log_tail": True, "sampled": False}},
        {"timeout_seconds": 1e-9},
        {"unknown": 1},
    ):
        answered.add(await http.post("/v1/score", json=body(**wrong)))
    for content in (b"{", b"x" * 100_001):
        headers = {"content-type": "application/json"}
        answered.add(await http.post("/v1/score", content=content, headers=headers))
    answered.add(await http.post("/v1/score", content=b"{}"))
    for prompts in ([{"text": "a b"}], [{"text": ""}, {"token_ids": [1]}], []):
        answered.add(await http.post("/v1/render", json={"prompts": prompts}))
    for content in (file, b"{}", b"x"):
        answered.add(await http.post("/v1/tokenizers?role=0:END_OF_TEXT", content=content))
    answered.add(await http.post("/v1/tokenizers?role=nonsense", content=file))
    answered |= {await http.get("/v1/tokenizers"), await http.get("/v1/tokenizers?run=%00")}
    for named in (tokenizer_hash(file), "v2-0", ""):
        answered.add(await http.delete(f"/v1/tokenizers?tokenizer_hash={named}"))
    answered |= {await http.head(path) for path in PUBLIC}
    for answer in answered:
        described(document, answer)
    statuses = {answer.status_code for answer in answered}
    assert statuses >= {200, 400, 404, 412, 413, 415, 504}


def field(document: dict[str, Any], model: str, name: str) -> dict[str, Any]:
    found: dict[str, Any] = document["components"]["schemas"][model]["properties"][name]
    return found


BEYOND: dict[str, tuple[str, str, str, Any]] = {
    "continuations": ("ScoreBody", "continuations", "maxItems", [{"token_ids": [1]}] * 4),
    "an id": ("ScoreBody", "continuations", "maxItems", [{"token_ids": [-1]}]),
    "an explicit id": (
        "ScoreBody",
        "continuations",
        "maxItems",
        [{"token_ids": [1], "explicit_ids": [[-2]]}],
    ),
    "a row": ("ScoreBody", "continuations", "maxItems", [{"token_ids": [1], "rows": [-1]}]),
    "no continuation": ("ScoreBody", "continuations", "minItems", []),
    "top_k": ("ScoreBody", "top_k", "minimum", -1),
    "temperature": ("ScoreBody", "temperature", "minimum", 1e-7),
    "a high temperature": ("ScoreBody", "temperature", "maximum", 1e7),
    "request_id": ("ScoreBody", "request_id", "maxLength", "x" * 257),
    "no request_id": ("ScoreBody", "request_id", "minLength", ""),
    "run": ("ScoreBody", "run", "maxLength", "x" * 257),
    "student_vocabulary_size": ("ScoreBody", "student_vocabulary_size", "minimum", 0),
    "max_reply_bytes": ("ScoreBody", "max_reply_bytes", "minimum", 0),
}
PROMPTS: dict[str, tuple[str, str, Any]] = {
    "token_ids": ("token_ids", "maxItems", [1] * 41),
    "no token_ids": ("token_ids", "minItems", []),
    "text": ("text", "maxLength", "x" * 61),
    "no messages": ("messages", "minItems", []),
}
ANSWERS: dict[str, tuple[str, str, Any]] = {
    "token_ids": ("token_ids", "maxItems", [1] * 41),
    "no token_ids": ("token_ids", "minItems", []),
    "text": ("text", "maxLength", "x" * 61),
    "no segments": ("segments", "minItems", []),
    "rows": ("rows", "maxItems", list(range(41))),
    "no rows": ("rows", "minItems", []),
    "explicit_ids": ("explicit_ids", "maxItems", [[1]] * 41),
}


async def refused(server: Running, document: dict[str, Any], request: dict[str, Any]) -> None:
    answer = await server.http.post("/v1/score", json=request)
    assert answer.status_code == 400, answer.text
    described(document, answer)


@pytest.mark.parametrize("case", BEYOND)
async def test_bounds_of_a_request_are_enforced(
    server: Running, document: dict[str, Any], case: str
) -> None:
    model, name, bound, value = BEYOND[case]
    assert bound in field(document, model, name)
    await refused(server, document, body(**{name: value}))


@pytest.mark.parametrize("case", PROMPTS)
async def test_bounds_of_a_prompt_are_enforced(
    server: Running, document: dict[str, Any], case: str
) -> None:
    name, bound, value = PROMPTS[case]
    assert bound in field(document, "PromptBody", name)
    await refused(server, document, body(prompt={name: value}))


@pytest.mark.parametrize("case", ANSWERS)
async def test_bounds_of_a_continuation_are_enforced(
    server: Running, document: dict[str, Any], case: str
) -> None:
    name, bound, value = ANSWERS[case]
    assert bound in field(document, "ContinuationBody", name)
    own = {} if name in ("token_ids", "text", "segments") else {"token_ids": [1]}
    await refused(server, document, body(continuations=[own | {name: value}]))


async def test_limits_in_force_are_the_bounds(document: dict[str, Any]) -> None:
    assert field(document, "ScoreBody", "continuations")["maxItems"] == TIGHT["max_continuations"]
    assert field(document, "RenderBody", "prompts")["maxItems"] == TIGHT["max_render_prompts"]
    assert field(document, "PromptBody", "text")["maxLength"] == TIGHT["max_text_bytes"]
    lines = field(document, "ContinuationBody", "explicit_ids")["anyOf"][0]["items"]
    assert lines["maxItems"] == TIGHT["max_explicit_ids"]


async def test_every_model_of_a_body_is_described(document: dict[str, Any]) -> None:
    bodies = {name for name in models.__all__ if name not in ("Body", "ErrorBody")}
    assert bodies <= set(document["components"]["schemas"])
    assert set(OPERATIONS) >= {(m, p) for m, p, _ in operations(document)}
