"""Connections of HTTP: how many may be open, which gives way, and how long each may take."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from typing import Any

import pytest
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from teacher_server.access.descriptors import ConnectionBounds
from teacher_server.http.connection.connection import MOST_UNREAD, Connection
from teacher_server.http.connection.host import READ_AT_ONCE
from teacher_server.http.connection.opening import LEFT
from teacher_server.http.connection.table import RESERVE, Entry, Rank
from teacher_server.settings.limits import LimitSettings
from tests.server.raw_http import Alone, alone, ask, connected
from tests.server.running import LONG, eventually

LIVE = b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n"
OTHER = b"GET /v1/teacher HTTP/1.1\r\nHost: x\r\n\r\n"
POST = b"POST /v1/score HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n"
PATIENT = LimitSettings()
HASTY = LimitSettings(header_seconds=0.2, body_seconds=0.2, write_seconds=0.2)
LARGE = 20 * 1024 * 1024


class App:
    """Reads a body, and answers with as many bytes as the path says, once the gate is open."""

    def __init__(self) -> None:
        self.gate = asyncio.Event()
        self.gate.set()
        self.begun = self.ended = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.begun += 1
        try:
            if scope["path"] != "/livez":
                await self.gate.wait()
            while (message := await receive())["type"] == "http.request" and message["more_body"]:
                pass
            size = int(scope["path"][1:]) if scope["path"][1:].isdigit() else 2
            length = (b"content-length", b"%d" % size)
            await send({"type": "http.response.start", "status": 200, "headers": [length]})
            await send({"type": "http.response.body", "body": bytes(size)})
        finally:
            self.ended += 1


@contextlib.asynccontextmanager
async def idle(server: Alone, count: int) -> Any:
    """Connections that send nothing."""
    async with contextlib.AsyncExitStack() as stack:
        peers = [await stack.enter_async_context(connected(server.address)) for _ in range(count)]
        yield peers


async def test_a_connection_that_asks_nothing_ends() -> None:
    async with alone(App(), HASTY) as server, connected(server.address) as peer:
        assert await peer.rest() == b""
        assert server.cut == ["silent"]


async def test_headers_that_do_not_end_end_the_connection() -> None:
    async with alone(App(), HASTY) as server, connected(server.address) as peer:
        await peer.send(LIVE)
        assert (await peer.answer()).status == 200
        sending = asyncio.create_task(drip(peer, b"GET /livez HTTP/1.1\r\nX: " + b"a" * 4000))
        assert await peer.rest() == b""
        sending.cancel()
        assert server.cut == ["slow_headers"]


async def drip(peer: Any, data: bytes) -> None:
    """A byte each time that the loop comes round: slow, and never idle."""
    for byte in data:
        with contextlib.suppress(OSError):
            await peer.send(bytes([byte]))
        await asyncio.sleep(0.001)
    await asyncio.Event().wait()


async def test_an_idle_connection_is_kept_for_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("teacher_server.http.server.KEEP_ALIVE_SECONDS", 0.2)
    async with alone(App(), PATIENT) as server, connected(server.address) as peer:
        for _ in range(2):
            await peer.send(LIVE)
            assert (await peer.answer()).status == 200
        assert await peer.rest() == b""
        assert server.cut == []


async def test_a_reply_that_nobody_reads_ends_with_its_connection() -> None:
    app = App()
    async with alone(app, HASTY) as server:
        host, _, port = server.address.rpartition(":")
        with socket.create_connection((host, int(port))) as peer:
            peer.sendall(b"GET /%d HTTP/1.1\r\nHost: x\r\n\r\n" % LARGE)
            await eventually(lambda: app.ended == 1)
            assert server.cut == ["unread_reply"]
            await eventually(lambda: len(server.server.table) == 0)


async def test_a_reply_that_is_read_slowly_arrives_whole() -> None:
    async with alone(App(), HASTY) as server, connected(server.address) as peer:
        await peer.send(b"GET /%d HTTP/1.1\r\nHost: x\r\n\r\n" % LARGE)
        assert len((await peer.answer()).body) == LARGE


async def test_idle_connections_keep_nobody_out() -> None:
    bounds = ConnectionBounds(8, 6)
    async with alone(App(), PATIENT, bounds) as server, idle(server, 20) as peers:
        assert (await ask(server.address, OTHER)).status == 200
        await eventually(lambda: len(server.server.table) <= 6)
        assert server.cut.count("gave_way") >= 14
        assert await peers[0].rest() == b""


async def test_who_has_asked_is_read_before_it_gives_way_to_a_flood() -> None:
    bounds = ConnectionBounds(40, 40)
    async with alone(App(), PATIENT, bounds) as server:
        host, _, port = server.address.rpartition(":")
        with contextlib.ExitStack() as stack:
            # The server's loop does not run before all of them are there.
            flood = [
                stack.enter_context(socket.create_connection((host, int(port)))) for _ in range(200)
            ]
            for peer in flood[::50]:
                peer.sendall(LIVE)
            for peer in flood[::50]:
                peer.setblocking(False)
                reading = asyncio.get_running_loop().sock_recv(peer, 65536)
                assert (await asyncio.wait_for(reading, LONG)).startswith(b"HTTP/1.1 200")


async def test_chunks_of_who_has_left_are_not_read() -> None:
    class Gone(App):
        data = 0
        told = ""

        async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
            self.begun += 1
            await self.gate.wait()
            while (message := await receive())["type"] == "http.request":
                self.data += len(message["body"])
            self.told = message["type"]
            self.ended += 1

    app = Gone()
    app.gate.clear()
    chunks = 10_000
    async with alone(app, PATIENT, ConnectionBounds(4, 4)) as server:
        host, _, port = server.address.rpartition(":")
        with socket.create_connection((host, int(port))) as peer:
            head = POST.replace(b"Content-Length: 10", b"Transfer-Encoding: chunked")
            peer.sendall(head)
            await eventually(lambda: app.begun == 1)
            peer.sendall(b"1\r\n \r\n" * chunks)
        app.gate.set()
        await eventually(lambda: app.ended == 1)
    assert app.told == "http.disconnect"
    assert app.data < chunks // 10


async def test_nothing_is_begun_for_who_has_left() -> None:
    """Those who came before somebody else and have left again are not in the way."""
    app = App()
    async with alone(app, PATIENT, ConnectionBounds(400, 400)) as server:
        host, _, port = server.address.rpartition(":")
        # The server's loop does not run before all of them are there, and have left.
        for _ in range(200):
            with socket.create_connection((host, int(port))) as peer:
                peer.sendall(POST)
        entered: list[Entry] = []
        enter = server.server.table.enter

        def counted(address: str, rank: Rank, **more: bool) -> Any:
            found = enter(address, rank, **more)
            entered.append(found[0])
            return found

        server.server.table.enter = counted  # type: ignore[method-assign]
        assert (await ask(server.address, LIVE)).status == 200
        assert app.begun <= len(entered)
        assert len(entered) <= 200 // LEFT + 3  # the first of each turn, and who asked
        await eventually(lambda: len(server.server.table) == 0)
        assert server.cut.count("left") >= 200 - len(entered)


async def test_new_ones_are_read_where_slow_bodies_have_every_other_place() -> None:
    bounds = ConnectionBounds(16, 16)
    async with alone(App(), PATIENT, bounds) as server, idle(server, 16) as peers:
        for peer in peers:
            await peer.send(POST)
        await eventually(lambda: len(waiting(server)) == 16)
        host, _, port = server.address.rpartition(":")
        with contextlib.ExitStack() as stack:
            # The server's loop does not run before all of them are there, and have asked.
            asking = [
                stack.enter_context(socket.create_connection((host, int(port)))) for _ in range(12)
            ]
            for peer in asking:
                peer.sendall(LIVE)
            for peer in asking:
                peer.setblocking(False)
                reading = asyncio.get_running_loop().sock_recv(peer, 65536)
                assert (await asyncio.wait_for(reading, LONG)).startswith(b"HTTP/1.1 200")


async def test_who_gives_way_when_it_has_just_opened_is_closed() -> None:
    """Nothing stays open beside the table, not where the opening is done and not yet noted."""

    async def opened() -> None:
        pass

    never = LimitSettings(header_seconds=100 * LONG)
    async with alone(App(), never) as server, connected(server.address) as peer:
        await peer.send(LIVE[:-4])
        openings = server.server._server._acceptor._openings
        await eventually(lambda: len(openings._connections) == 1 and not openings._opening)
        (entry,) = openings._connections
        openings._opening[entry] = asyncio.create_task(opened())
        await openings._opening[entry]
        openings.end(entry)
        del openings._opening[entry]
        assert await peer.rest() == b""


async def test_who_asks_one_thing_may_close_its_side() -> None:
    async with alone(App(), PATIENT) as server:
        host, _, port = server.address.rpartition(":")
        with socket.create_connection((host, int(port))) as peer:
            peer.sendall(LIVE)
            peer.shutdown(socket.SHUT_WR)
            peer.setblocking(False)
            reading = asyncio.get_running_loop().sock_recv(peer, 65536)
            assert (await asyncio.wait_for(reading, LONG)).startswith(b"HTTP/1.1 200")


async def test_slow_bodies_keep_nobody_out() -> None:
    bounds = ConnectionBounds(4, 4)
    async with alone(App(), PATIENT, bounds) as server, idle(server, 4) as peers:
        for peer in peers:
            await peer.send(POST)
        await eventually(lambda: len(waiting(server)) == 4)
        assert (await ask(server.address, OTHER)).status == 200
        assert await peers[0].rest() == b""


def waiting(server: Alone) -> list[Any]:
    groups = server.server.table._groups.values()
    return [entry for group in groups for entry in group.ranks[Rank.WAITS]]


async def test_health_is_answered_when_every_connection_is_busy() -> None:
    app = App()
    app.gate.clear()
    bounds = ConnectionBounds(4, 4)
    async with alone(app, PATIENT, bounds) as server, idle(server, 4) as peers:
        for peer in peers:
            await peer.send(OTHER)
        await eventually(lambda: app.begun == 4)
        for _ in range(2 * RESERVE):
            assert (await ask(server.address, LIVE)).status == 200
        refused = await ask(server.address, OTHER)
        assert (refused.status, refused.error["reason"]) == (503, "TOO_MANY_CONNECTIONS")
        assert refused.headers["connection"] == "close"
        assert "limits.max_connections" in refused.error["where"]
        assert server.refused == ["TOO_MANY_CONNECTIONS"]
        async with idle(server, RESERVE):
            assert (await ask(server.address, LIVE)).status == 200
        app.gate.set()
        for peer in peers:
            assert (await peer.answer()).status == 200
        assert (await ask(server.address, OTHER)).status == 200


async def test_requests_sent_at_once_are_answered_in_their_order() -> None:
    async with alone(App(), PATIENT) as server, connected(server.address) as peer:
        await peer.send(b"".join(b"GET /%d HTTP/1.1\r\nHost: x\r\n\r\n" % n for n in range(200)))
        assert [len((await peer.answer()).body) for _ in range(200)] == list(range(200))


@pytest.mark.parametrize(
    ("body", "connection"),
    [
        (b"Content-Length: 5\r\n\r\nabcde", None),
        (b"Transfer-Encoding: chunked\r\n\r\n5\r\nabcde\r\n0\r\n\r\n", None),
        (b"Content-Length: 9\r\n\r\nabcde", "close"),
    ],
    ids=["whole", "in chunks", "half"],
)
async def test_a_body_that_nobody_reads_is_passed_over(body: bytes, connection: str | None) -> None:
    async with alone(Response("unread"), PATIENT) as server, connected(server.address) as peer:
        await peer.send(b"POST / HTTP/1.1\r\nHost: x\r\n" + body)
        assert (await peer.answer()).headers.get("connection") == connection
        if connection is None:
            await peer.send(LIVE)
            assert (await peer.answer()).body == b"unread"
        else:
            await peer.send(b"fghi")
        await server.server.stop()
        assert await peer.rest() == b""


async def test_no_more_than_a_little_is_read_before_it_is_asked_for() -> None:
    app = App()
    app.gate.clear()
    async with alone(app, PATIENT) as server, connected(server.address) as peer:
        await peer.send(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % LARGE)
        await eventually(lambda: app.begun == 1)
        sending = asyncio.create_task(peer.send(bytes(LARGE)))
        connection = connection_of(server)
        await eventually(lambda: not connection.transport.is_reading())
        assert len(connection.unread) <= MOST_UNREAD + READ_AT_ONCE
        app.gate.set()
        assert (await peer.answer()).status == 200
        await sending


async def test_no_more_requests_are_read_than_are_answered() -> None:
    kept: list[int] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        kept.append(len(connection_of(server).unread))
        await Response()(scope, receive, send)

    head = b"GET / HTTP/1.1\r\nHost: x\r\nX: %b\r\n\r\n" % (b"a" * 8000)
    async with alone(app, PATIENT) as server, connected(server.address) as peer:
        sending = asyncio.create_task(peer.send(head * 200))
        for _ in range(200):
            assert (await peer.answer()).status == 200
        await sending
    assert max(kept) <= MOST_UNREAD + READ_AT_ONCE


def connection_of(server: Alone) -> Connection:
    (connection,) = server.server._server.server_state.connections
    assert isinstance(connection, Connection)
    return connection


async def test_stopping_lets_a_request_end_and_closes_idle_connections() -> None:
    app = App()
    app.gate.clear()
    async with alone(app, PATIENT) as server, idle(server, 2) as (busy, unused):
        await busy.send(OTHER)
        await eventually(lambda: app.begun == 1)
        stopping = asyncio.create_task(server.server.stop())
        assert await unused.rest() == b""
        app.gate.set()
        answer = await busy.answer()
        assert (answer.status, answer.headers["connection"]) == (200, "close")
        assert await busy.rest() == b""
        await asyncio.wait_for(stopping, LONG)
