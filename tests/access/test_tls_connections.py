"""Encrypted connections count and have their times from the first byte of the handshake on."""

from __future__ import annotations

import contextlib
import ssl
from pathlib import Path

import pytest
from starlette.responses import PlainTextResponse, Response
from starlette.types import Receive, Scope, Send

from teacher_server.access.certificates import Certificates
from teacher_server.access.descriptors import ConnectionBounds
from teacher_server.settings.limits import LimitSettings
from tests.access.pki import HOSTS, Authority
from tests.server.raw_http import alone, connected
from tests.server.running import eventually

LIVE = b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n"
LARGE = 20 * 1024 * 1024
HASTY = LimitSettings(header_seconds=0.2, body_seconds=0.2, write_seconds=0.2)


async def app(scope: Scope, receive: Receive, send: Send) -> None:
    answer = Response(bytes(LARGE)) if scope["path"] == "/large" else PlainTextResponse("live")
    await answer(scope, receive, send)


@pytest.fixture
def tls(tmp_path: Path) -> tuple[Certificates, ssl.SSLContext]:
    ca = Authority(tmp_path, "ca")
    pair = ca.issue("server", *HOSTS)
    return Certificates(pair.cert, pair.key, None), ssl.create_default_context(cafile=ca.pem)


async def test_a_handshake_that_does_not_come_ends(
    tls: tuple[Certificates, ssl.SSLContext], caplog: pytest.LogCaptureFixture
) -> None:
    certificates, _ = tls
    async with alone(app, HASTY, certificates=certificates) as server:
        async with connected(server.address) as silent, connected(server.address) as slow:
            await slow.send(b"\x16\x03\x01\x02\x00\x01")
            await eventually(lambda: len(server.server.table) == 2)
            assert await silent.rest() == b""
            assert await slow.rest() == b""
        async with connected(server.address) as plain:
            await plain.send(LIVE)
            assert b"HTTP" not in await plain.rest()
        await eventually(lambda: len(server.server.table) == 0)
    # Of one that has sent nothing at all no handshake is begun.
    assert sorted(server.cut) == ["no_handshake", "no_handshake", "silent"]
    assert not caplog.records


async def test_handshakes_under_way_keep_nobody_out(
    tls: tuple[Certificates, ssl.SSLContext],
) -> None:
    certificates, context = tls
    async with (
        alone(app, LimitSettings(), ConnectionBounds(4, 4), certificates) as server,
        contextlib.AsyncExitStack() as stack,
    ):
        waiting = [await stack.enter_async_context(connected(server.address)) for _ in range(12)]
        async with connected(server.address, context) as peer:
            for _ in range(2):
                await peer.send(LIVE)
                assert (await peer.answer()).status == 200
        assert await waiting[0].rest() == b""
        assert server.cut.count("gave_way") >= 9


async def test_large_replies_are_read_or_end(tls: tuple[Certificates, ssl.SSLContext]) -> None:
    certificates, context = tls
    ask = LIVE.replace(b"/livez", b"/large")
    async with alone(app, HASTY, certificates=certificates) as server:
        async with connected(server.address, context) as peer:
            await peer.send(ask)
            assert len((await peer.answer()).body) == LARGE
        async with connected(server.address, context) as peer:
            peer.writer.transport.pause_reading()  # type: ignore[attr-defined]
            await peer.send(ask)
            await eventually(lambda: len(server.server.table) == 0)
            assert server.cut == ["unread_reply"]


async def test_an_encrypted_connection_that_asks_nothing_ends(
    tls: tuple[Certificates, ssl.SSLContext],
) -> None:
    certificates, context = tls
    async with (
        alone(app, HASTY, certificates=certificates) as server,
        connected(server.address, context) as peer,
    ):
        assert await peer.rest() == b""
        assert server.cut == ["silent"]
