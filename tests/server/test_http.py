"""The HTTP side: what is refused, how, and what people see."""

from __future__ import annotations

import json
from typing import Any

import pytest

from teacher_server.http.models import ErrorBody, ScoreReplyBody
from tests.server.running import Running
from tests.server.test_scoring import http_body

pytestmark = pytest.mark.asyncio(loop_scope="module")

JSON = {"content-type": "application/json"}

BAD_BODIES: list[tuple[str, bytes, str]] = [
    ("empty", b"", "MALFORMED_JSON"),
    ("cut", b'{"prompt": {', "MALFORMED_JSON"),
    ("not UTF-8", b'{"prompt": "\xff"}', "MALFORMED_JSON"),
    ("NaN", b'{"temperature": NaN}', "MALFORMED_JSON"),
    ("infinite", b'{"temperature": 1e999}', "MALFORMED_JSON"),
    ("long number", b'{"top_k": ' + b"9" * 5000 + b"}", "MALFORMED_JSON"),
    ("deep", b"[" * 50_000, "MALFORMED_JSON"),
    ("twice", b'{"top_k": 1, "top_k": 2}', "MALFORMED_JSON"),
    ("half a surrogate pair", b'{"run": "\\ud800"}', "MALFORMED_JSON"),
    ("half a pair as bytes", b'{"run": "\xed\xa0\x80"}', "MALFORMED_JSON"),
    ("a long string cut", b'{"run": "' + b"a" * 20_000, "MALFORMED_JSON"),
    ("a long string not UTF-8", b'{"run": "' + b"a" * 20_000 + b'\xff"}', "MALFORMED_JSON"),
    ("an array", b"[]", "INVALID_REQUEST"),
]


@pytest.mark.parametrize(
    ("body", "reason"), [b[1:] for b in BAD_BODIES], ids=[b[0] for b in BAD_BODIES]
)
async def test_bad_json_is_refused(shared: Running, body: bytes, reason: str) -> None:
    answer = await shared.http.post("/v1/score", content=body, headers=JSON)
    assert answer.status_code == 400
    assert ErrorBody.model_validate(answer.json()).error.reason == reason


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"unknown": 1}, "unknown"),
    ({"top_k": "4"}, "top_k"),
    ({"top_k": 2.5}, "top_k"),
    ({"top_k": True}, "top_k"),
    ({"top_k": 2**40}, "top_k"),
    ({"temperature": 0}, "temperature"),
    ({"timeout_seconds": 0}, "timeout_seconds"),
    ({"prompt": {}}, "prompt"),
    ({"prompt": {"text": "a", "token_ids": [1]}}, "prompt"),
    ({"prompt": {"text": "a", "add_generation_prompt": True}}, "prompt.add_generation_prompt"),
    ({"prompt": {"token_ids": [320]}}, "prompt.token_ids"),
    ({"prompt": {"messages": [{"role": "user"}]}}, "prompt.messages[0].content"),
    ({"continuations": []}, "continuations"),
    ({"continuations": [{}]}, "continuations[0]"),
    ({"continuations": [{"text": ""}]}, "continuations[0].segments[0].token_ids"),
    ({"continuations": [{"segments": [{}]}]}, "continuations[0].segments[0]"),
    ({"continuations": [{"token_ids": [1], "rows": [1]}]}, "continuations[0].rows"),
    (
        {"continuations": [{"token_ids": [1, 2], "explicit_ids": [[1], [1, 2]]}]},
        "continuations[0].explicit_ids",
    ),
    ({"request_id": ""}, "request_id"),
    ({"run": "a\u0000b"}, "run"),
]


@pytest.mark.parametrize(("changes", "where"), WRONG, ids=[str(w[0])[:60] for w in WRONG])
async def test_wrong_fields_are_named(shared: Running, changes: dict[str, Any], where: str) -> None:
    answer = await shared.http.post("/v1/score", json=http_body(**changes))
    error = ErrorBody.model_validate(answer.json()).error
    assert answer.status_code == 400
    assert error.where == where
    assert error.what
    assert error.fix


@pytest.mark.parametrize(
    ("changes", "status", "reason"),
    [
        ({"teacher": "nobody"}, 404, "UNKNOWN_TEACHER"),
        ({"tokenizer_hash": "0"}, 412, "UNKNOWN_TOKENIZER"),
        ({"expected_identity": "0"}, 412, "IDENTITY_MISMATCH"),
    ],
)
async def test_errors_have_their_status(
    shared: Running, changes: dict[str, Any], status: int, reason: str
) -> None:
    answer = await shared.http.post("/v1/score", json=http_body(**changes))
    assert (answer.status_code, answer.json()["error"]["reason"]) == (status, reason)


@pytest.mark.parametrize(
    ("method", "path", "status", "reason"),
    [
        ("GET", "/nowhere", 404, "NOT_FOUND"),
        ("GET", "/v1/score", 405, "METHOD_NOT_ALLOWED"),
        ("POST", "/livez", 405, "METHOD_NOT_ALLOWED"),
        ("GET", "/v1/teacher?teacher=nobody", 404, "UNKNOWN_TEACHER"),
    ],
)
async def test_unknown_routes_and_methods_answer_in_json(
    shared: Running, method: str, path: str, status: int, reason: str
) -> None:
    answer = await shared.http.request(method, path)
    assert answer.status_code == status
    assert ErrorBody.model_validate(answer.json()).error.reason == reason


async def test_only_plain_json_bodies_are_read(shared: Running) -> None:
    body = json.dumps(http_body()).encode()
    for headers in ({"content-type": "text/plain"}, JSON | {"content-encoding": "gzip"}):
        answer = await shared.http.post("/v1/score", content=body, headers=headers)
        assert answer.status_code == 415
        assert answer.json()["error"]["reason"] == "UNSUPPORTED_MEDIA_TYPE"


async def test_text_comes_with_the_reply_and_the_schema_describes_it(shared: Running) -> None:
    answer = await shared.http.post(
        "/v1/score",
        json=http_body(
            prompt={"messages": [{"role": "user", "content": "Hello"}]},
            continuations=[{"text": "the teacher<|im_end|>"}],
            returns={"log_tail": True},
        ),
    )
    reply = ScoreReplyBody.model_validate(answer.json())
    rows = reply.results[0].rows
    assert "".join(row.token or "" for row in rows) == "the teacher<|im_end|>"
    assert all(row.top is not None and len(row.top) == 4 for row in rows)
    assert reply.teacher == "default"


async def test_the_teacher_is_described_as_over_grpc(shared: Running) -> None:
    described = (await shared.http.get("/v1/teacher")).json()
    info = shared.info.teacher("default")
    (found,) = described["teachers"]
    assert found["identity"]["digest"] == info.identity.digest
    assert found["tokenizers"] == {info.identity.tokenizer_hash: "SAME"}
    assert described["limits"]["max_request_bytes"] == shared.info.limits.max_request_bytes


async def test_docs_and_openapi_hold_every_route(shared: Running) -> None:
    document = (await shared.http.get("/openapi.json")).json()
    page = await shared.http.get("/docs")
    assert "<script>" not in page.text  # all of it comes from files of the server
    assert "'unsafe" not in page.headers["content-security-policy"]
    for path in ("/v1/score", "/v1/teacher", "/livez", "/readyz", "/metrics"):
        assert path in document["paths"]
    score = document["paths"]["/v1/score"]["post"]
    reference = score["requestBody"]["content"]["application/json"]["schema"]["$ref"]
    body = document["components"]["schemas"][reference.rpartition("/")[2]]
    assert set(body["required"]) == {"prompt", "continuations", "top_k", "temperature"}
    text = json.dumps(document)
    for name in {part.split('"')[0] for part in text.split("#/components/schemas/")[1:]}:
        assert name in document["components"]["schemas"]
