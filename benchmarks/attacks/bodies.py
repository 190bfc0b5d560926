"""Attacks by what a request holds: as large, as many or as deep as a body can be."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import grpc
import httpx
import numpy as np
from teacher_proto import codec
from teacher_proto.types import (
    ChatMessage,
    ChatPrompt,
    Continuation,
    Prompt,
    ScoreRequest,
    Segment,
    TextPrompt,
    TokenPrompt,
)

from benchmarks.attacks.target import MIB, Target, bearer

IN_FLIGHT = 2
LONG = 300.0
SCORE = "/teacher_proto.v1.TeacherScoringService/Score"
JSON = "application/json"
HEAD = b'{"prompt":{"token_ids":['
TAIL = b'1]},"continuations":[{"token_ids":[1]}],"top_k":1,"temperature":1.0}'
ONE_ID = TokenPrompt(np.array([1], np.int32))


def message(prompt: Prompt, tokenizer: str, segments: int = 1, top_k: int = 1) -> bytes:
    one = Continuation((Segment(np.array([1], np.int32)),) * segments)
    request = ScoreRequest("attack", "", "default", tokenizer, prompt, (one,), top_k, 1.0)
    return codec.serialize(codec.encode_request(request))


def continuations(size: int, tokenizer: str) -> bytes:
    return message(TextPrompt("a"), tokenizer) + b"\x3a\x00" * (size // 2)


def chat(size: int) -> Prompt:
    return ChatPrompt((ChatMessage("user", "a" * size),))


def json_text(size: int) -> bytes:
    return b'{"prompt":{"text":"' + b"a" * size + b'"' + TAIL.removeprefix(b"1]")


# Name -> (wire, run, the body by the teacher's tokenizer).
BODIES: dict[str, tuple[str, str, Callable[[str], bytes]]] = {
    "text_grpc": ("grpc", "mallory", lambda t: message(TextPrompt("a" * 15 * MIB), t)),
    "text_http": ("http", "mallory", lambda t: json_text(15 * MIB)),
    "chat_grpc": ("grpc", "mallory", lambda t: message(chat(15 * MIB), t)),
    "continuations": ("grpc", "mallory", lambda t: continuations(15 * MIB, t)),
    "metrics_only": ("grpc", "watcher", lambda t: continuations(6 * MIB, t)),
    "json_lists": ("http", "mallory", lambda t: HEAD + b"[]," * (5 * MIB) + TAIL),
    "text_within": ("grpc", "mallory", lambda t: message(TextPrompt("a" * 4 * MIB), t)),
    "segments_within": ("grpc", "mallory", lambda t: message(ONE_ID, t, 16_384, 640)),
    "json_within": ("http", "mallory", lambda t: HEAD + b"9999999," * (MIB // 8 + 8_000) + TAIL),
}


async def attack(name: str, target: Target) -> None:
    wire, run, make = BODIES[name]
    body = make(target.tokenizer)
    target.admitted = IN_FLIGHT * len(body)
    await target.begin()
    if wire == "grpc":
        await on_grpc(target, SCORE, body, ((("authorization", bearer(run))),))
    else:
        headers = {"authorization": bearer(run), "content-type": JSON}
        await on_http(target, "/v1/score", body, headers)


async def on_grpc(
    target: Target, method: str, body: bytes, metadata: Any, count: int = IN_FLIGHT
) -> None:
    options = [("grpc.max_send_message_length", -1)]
    async with grpc.aio.insecure_channel(target.grpc_address, options) as channel:
        call: Any = channel.unary_unary(method)

        async def once() -> str:
            try:
                await call(body, timeout=LONG, metadata=metadata)
            except grpc.aio.AioRpcError as error:
                return error.code().name
            return "OK"

        await target.repeat(count, once)


async def on_http(
    target: Target, path: str, body: bytes, headers: dict[str, str], count: int = IN_FLIGHT
) -> None:
    async with httpx.AsyncClient(
        base_url=f"http://{target.http_address}", timeout=LONG, headers=headers
    ) as http:

        async def once() -> str:
            try:
                if body:
                    return str((await http.post(path, content=body)).status_code)
                return str((await http.get(path)).status_code)
            except httpx.TransportError as error:
                return type(error).__name__

        await target.repeat(count, once)
