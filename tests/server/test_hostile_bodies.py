"""A body is looked at after its caller, counted before it is parsed, and parsed beside the loop."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import pytest
from teacher_proto import codec
from teacher_proto.client.credentials import ClientCredentials
from teacher_proto.errors import InvalidRequestError, LsmError
from teacher_proto.status import from_rpc_error
from teacher_proto.v1 import score_pb2

from teacher_server.grpc.form import MAX_FIELDS, MAX_MESSAGES, MAX_SEGMENTS, MAX_VALUES
from teacher_server.http import app as http_app
from teacher_server.http.body import MOST
from teacher_server.lanes import LIGHT_BYTES
from tests.access.pki import ALICE, write_secret
from tests.server.running import LONG, SCORE, Running, body_of, running

REGISTER = SCORE.removesuffix("Score") + "RegisterTokenizer"
WATCHER = "watcher-token-0123456789abcdef0123456789"
RUNS = f"""
[runs.alice]
[[runs.alice.tokens]]
token = "{ALICE}"
[runs.watcher]
teachers = []
[[runs.watcher.tokens]]
token = "{WATCHER}"
"""
BEARER = (("authorization", f"Bearer {WATCHER}"),)
NO_MESSAGE = b"\xff" * 100


@pytest.fixture
async def guarded(
    tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Running]:
    file = write_secret(tmp_path / "runs.toml", RUNS)
    async with running(
        {"default": tiny_model_dir},
        monkeypatch,
        credentials=ClientCredentials(token=ALICE),
        run="alice",
        access={"credentials_file": file},
    ) as found:
        yield found


async def refusal(call: Any) -> LsmError:
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        async with asyncio.timeout(LONG):
            await call
    return from_rpc_error(raised.value)


async def test_who_may_ask_no_teacher_is_refused_before_the_body_is_read(guarded: Running) -> None:
    async with grpc.aio.insecure_channel(guarded.server.grpc_address) as channel:
        score: Any = channel.unary_unary(SCORE)
        assert (await refusal(score(NO_MESSAGE, metadata=BEARER))).reason == "TEACHER_FORBIDDEN"
        register: Any = channel.stream_unary(REGISTER)
        open_stream = register(metadata=BEARER)  # nothing is sent, and it stays open
        assert (await refusal(open_stream)).reason == "TEACHER_FORBIDDEN"
    for path, kind in (("/v1/score", "application/json"), ("/v1/tokenizers", "text/plain")):
        status, body = await headers_only(guarded.server.http_address, path, kind)
        assert status == 403
        assert json.loads(body)["error"]["reason"] == "TEACHER_FORBIDDEN"


async def headers_only(address: str, path: str, kind: str) -> tuple[int, bytes]:
    """The answer to a request whose declared body never comes."""
    host, _, port = address.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(
        f"POST {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {WATCHER}\r\n"
        f"Content-Type: {kind}\r\nContent-Length: 6000000\r\n\r\n".encode()
    )
    async with asyncio.timeout(LONG):
        answer = await reader.read()  # to the end: the server closes the connection
    writer.close()
    head, _, body = answer.partition(b"\r\n\r\n")
    return int(head.split()[1]), body


def many_segments(message: score_pb2.ScoreRequest, count: int) -> None:
    for _ in range(count):
        message.continuations[0].segments.add()


def many_messages(message: score_pb2.ScoreRequest, count: int) -> None:
    for _ in range(count):
        message.prompt.chat.messages.add()


def many_values(message: score_pb2.ScoreRequest, count: int) -> None:
    arguments = message.prompt.chat.template_arguments.fields
    arguments["many"].list_value.values.extend([arguments["one"]] * (count - 1))


def many_fields(message: score_pb2.ScoreRequest, count: int) -> None:
    message.continuations[0].rows.shape.extend([1] * count)


def many_continuations(message: score_pb2.ScoreRequest, count: int) -> None:
    for _ in range(count):
        message.continuations.add()


@pytest.mark.parametrize(
    ("change", "most", "told"),
    [
        (many_continuations, 1024, "limits.max_continuations"),
        (many_segments, MAX_SEGMENTS, "more segments"),
        (many_messages, MAX_MESSAGES, "more messages"),
        (many_values, MAX_VALUES, "more values"),
        (many_fields, MAX_FIELDS + 16 * 1024, "more fields"),
    ],
)
async def test_what_a_body_holds_is_counted_before_it_is_decoded(
    server: Running,
    monkeypatch: pytest.MonkeyPatch,
    change: Callable[[Any, int], None],
    most: int,
    told: str,
) -> None:
    decoded: list[int] = []
    decode = codec.decode_request
    monkeypatch.setattr(codec, "decode_request", lambda body: [decoded.append(1), decode(body)][1])
    message = codec.encode_request(server.request())
    change(message, most + 1)
    with pytest.raises(InvalidRequestError) as raised:
        raise await refusal(server.raw_score(message.SerializeToString()))
    assert raised.value.reason == "LIMIT_EXCEEDED"
    assert told in raised.value.what
    assert decoded == []


@pytest.mark.parametrize(
    ("part", "kind"),
    [
        (b"1,", "values"),
        (b"[],", "arrays"),
        (b"{},", "objects"),
        (b'"",', "strings"),
        (b'{"a":1,"b":1,"c":1},', "keys"),
    ],
)
async def test_what_json_holds_is_counted_before_it_is_parsed(
    server: Running, monkeypatch: pytest.MonkeyPatch, part: bytes, kind: str
) -> None:
    body = b"[" + part * (getattr(MOST, kind) // part.count(b":" if kind == "keys" else b",") + 1)
    answer = await server.http.post(  # no JSON: the end is missing
        "/v1/score", content=body, headers={"content-type": "application/json"}
    )
    error = answer.json()["error"]
    assert (answer.status_code, error["reason"]) == (400, "LIMIT_EXCEEDED")
    assert f"more {kind} than" in error["what"]


async def test_many_wrong_fields_are_not_told_one_by_one(server: Running) -> None:
    body = {f"unknown {number}": 1 for number in range(1500)}
    error = (await server.http.post("/v1/score", json=body)).json()["error"]
    assert "fields are wrong" in error["what"]
    first = {"prompt": {"token_ids": ["a"] * 1500}}
    error = (await server.http.post("/v1/score", json=first)).json()["error"]
    assert error["where"] == "prompt.token_ids[0]"


@pytest.mark.parametrize("wire", ["grpc", "http"])
async def test_others_are_answered_while_a_large_body_is_decoded(
    server: Running, monkeypatch: pytest.MonkeyPatch, wire: str
) -> None:
    begun, go_on = asyncio.Event(), threading.Event()
    loop = asyncio.get_running_loop()

    def held(decode: Callable[[bytes], Any]) -> Callable[[bytes], Any]:
        def call(body: bytes) -> Any:
            if len(body) > LIGHT_BYTES:
                loop.call_soon_threadsafe(begun.set)
                assert go_on.wait(LONG)
            return decode(body)

        return call

    monkeypatch.setattr(codec, "decode_request", held(codec.decode_request))
    monkeypatch.setattr(http_app, "parse_score_body", held(http_app.parse_score_body))
    if wire == "grpc":
        padded = body_of(server.request()) + b"\xa2\x06\x80\x80\x08" + bytes(1 << 17)  # unknown
        large = asyncio.create_task(server.raw_score(padded))
    else:
        body = {"prompt": {"token_ids": [1]}, "continuations": [{"token_ids": [1]}], "top_k": 1}
        content = json.dumps(body | {"temperature": 1.0}).encode() + b" " * (1 << 17)
        large = asyncio.create_task(
            server.http.post(
                "/v1/score", content=content, headers={"content-type": "application/json"}
            )
        )
    try:
        async with asyncio.timeout(LONG):
            await begun.wait()
        assert (await server.http.get("/livez")).status_code == 200
        await server.score(replace(server.request(), request_id="small"))
        assert not large.done()
    finally:
        go_on.set()
    await large
