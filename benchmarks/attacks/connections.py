"""Attacks by how bytes come and go: connections that say little, bodies that stop, replies that
nobody reads."""

from __future__ import annotations

import asyncio
import json
import socket
import struct
import time
from functools import partial

from benchmarks.attacks.bodies import on_grpc, on_http
from benchmarks.attacks.frames import PREFACE, frame, headers, varint
from benchmarks.attacks.target import MIB, Target, bearer

IDLE = 240  # sockets of each wire
SLOW = 60
UPLOADS, UPLOAD_BYTES = 12, 40 * MIB
UNREAD, UNREAD_BYTES = 8, 20 * MIB
ROWS = 2000  # of an unread reply: with K=300 about 20 MB of JSON
# An address of this machine that is not the neighbour's; others share the neighbour's.
ELSEWHERE = "127.0.0.2"


async def idle_sockets(target: Target, source: str = ELSEWHERE) -> None:
    """Keeps as many connections open as it can, and sends nothing."""
    await target.begin()
    held: list[socket.socket] = []
    while target.lasts:
        while len(held) < 2 * IDLE and target.lasts:
            try:
                wire = "http" if len(held) % 2 else "grpc"
                held.append(target.connect(wire, source=source))
                target.ended["opened"] += 1
            except OSError as error:
                target.ended[type(error).__name__] += 1
                break
            await asyncio.sleep(0)
        await asyncio.sleep(0.2)
        held = [one for one in held if _open(one)]
    for one in held:
        one.close()


def _open(one: socket.socket) -> bool:
    one.setblocking(False)
    try:
        if one.recv(4096):
            return True
    except BlockingIOError:
        return True
    except OSError:
        pass
    one.close()
    return False


async def slow_headers(target: Target) -> None:
    """Headers that come a byte at a time and never end; half a preface on the other wire."""
    beginnings = {
        "http": b"GET /v1/teacher HTTP/1.1\r\nhost: a\r\nx-slow: ",
        "grpc": PREFACE[:-1],
    }
    await target.begin()
    held = []
    for number in range(2 * SLOW):
        wire = "http" if number % 2 else "grpc"
        try:
            one = target.connect(wire)
            one.sendall(beginnings[wire])
            held.append((wire, one))
        except OSError as error:
            target.ended[type(error).__name__] += 1
    while target.lasts:
        for wire, one in held:
            try:
                one.send(b"a" if wire == "http" else b"")
            except OSError:
                target.ended["ended"] += 1
        await asyncio.sleep(0.25)


async def stalled_uploads(target: Target) -> None:
    """Bodies of 40 MB whose last byte never comes."""
    target.admitted = UPLOADS * UPLOAD_BYTES
    await target.begin()

    def once() -> str:
        with target.connect("http") as one:
            one.sendall(_post("/v1/score", f"content-length: {UPLOAD_BYTES}"))
            piece = b'{"prompt":{"text":"' + b"a" * (MIB - 19)
            sent = 0
            while sent < UPLOAD_BYTES - 1 and target.lasts:
                sent += one.send(piece[: UPLOAD_BYTES - 1 - sent])
            return _wait_for_end(one, target)

    await target.on_sockets(UPLOADS, once)


async def unread_replies(target: Target) -> None:
    """Replies of 20 MB to requests whose sender reads nothing."""
    target.admitted = UNREAD * UNREAD_BYTES
    body = json.dumps(
        {
            "prompt": {"token_ids": [1]},
            "continuations": [{"token_ids": [number % 300 for number in range(ROWS)]}],
            "top_k": 300,
            "temperature": 1.0,
        }
    ).encode()
    await target.begin()

    def once() -> str:
        with target.connect("http", receive_buffer=4096) as one:
            one.sendall(_post("/v1/score", f"content-length: {len(body)}") + body)
            while target.lasts:
                time.sleep(0.05)
            return "unread"

    await target.on_sockets(UNREAD, once)


async def http_chunks(target: Target) -> None:
    """Bodies in chunks of a byte."""
    await _in_pieces(
        target, "http", _post("/v1/score", "transfer-encoding: chunked"), b"1\r\n \r\n"
    )


async def grpc_frames(target: Target) -> None:
    """Messages in frames of a byte."""
    stream = frame(1, 4, 1, headers()) + frame(0, 0, 1, b"\0" + struct.pack(">I", 30_000))
    await _in_pieces(target, "grpc", PREFACE + stream, frame(0, 0, 1, b"\0"))


async def http_churn(target: Target, source: str = ELSEWHERE) -> None:
    """Connections that send a little of a body and are gone, one after the other."""
    chunks = _post("/v1/score", "transfer-encoding: chunked") + b"1\r\n \r\n" * 25_000
    await _come_and_go(target, "http", chunks, source)


async def grpc_churn(target: Target, source: str = ELSEWHERE) -> None:
    """The same on the other wire."""
    stream = frame(1, 4, 1, headers()) + frame(0, 0, 1, b"\0" + struct.pack(">I", 30_000))
    data = PREFACE + stream + frame(0, 0, 1, b"\0") * 25_000
    await _come_and_go(target, "grpc", data, source)


async def _come_and_go(target: Target, wire: str, data: bytes, source: str) -> None:
    await target.begin()

    def once() -> str:
        with target.connect(wire, source=source) as one:
            one.sendall(data)
        return "gone"

    await target.on_sockets(4, once)


async def _in_pieces(target: Target, wire: str, opening: bytes, piece: bytes) -> None:
    await target.begin()

    def once() -> str:
        with target.connect(wire) as one:
            one.sendall(opening)
            for _ in range(25):
                if target.lasts:
                    one.sendall(piece * 1000)
            return _wait_for_end(one, target)

    await target.on_sockets(4, once)


async def health_messages(target: Target) -> None:
    """What a stranger may call: health, with messages of 4 MB."""
    name = b"a" * (4 * MIB - 64)
    body = b"\x0a" + varint(len(name)) + name
    target.admitted = 2 * len(body)
    await target.begin()
    await on_grpc(target, "/grpc.health.v1.Health/Check", body, ())


async def anonymous_refusals(target: Target) -> None:
    """Calls without credentials on both wires, as fast as they are refused."""
    await target.begin()
    await asyncio.gather(
        on_http(target, "/v1/teacher", b"", {}, 4),
        on_grpc(target, "/teacher_proto.v1.TeacherScoringService/GetTeacher", b"", (), 4),
    )


async def public_files(target: Target) -> None:
    """The largest file that strangers may have, uncompressed, as fast as it is sent."""
    target.admitted = 4 * 2 * MIB
    await target.begin()
    await on_http(target, "/docs/swagger-ui-bundle.js", b"", {"accept-encoding": "identity"}, 4)


CONNECTIONS = {
    "idle_sockets": idle_sockets,
    "idle_sockets_near": partial(idle_sockets, source=""),
    "slow_headers": slow_headers,
    "stalled_uploads": stalled_uploads,
    "unread_replies": unread_replies,
    "http_chunks": http_chunks,
    "grpc_frames": grpc_frames,
    "http_churn": http_churn,
    "http_churn_near": partial(http_churn, source=""),
    "grpc_churn": grpc_churn,
    "grpc_churn_near": partial(grpc_churn, source=""),
    "health_messages": health_messages,
    "anonymous_refusals": anonymous_refusals,
    "public_files": public_files,
}


def _post(path: str, *headers: str) -> bytes:
    lines = [f"POST {path} HTTP/1.1", "host: a", "content-type: application/json"]
    lines += [f"authorization: {bearer('mallory')}", *headers]
    return "".join(f"{line}\r\n" for line in lines).encode() + b"\r\n"


def _wait_for_end(one: socket.socket, target: Target) -> str:
    while target.lasts:
        try:
            return "ended" if one.recv(4096) else "closed"
        except TimeoutError:
            continue
    return "stalled"
