"""Connections are opened in turns: whoever queues however many, another address is next."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.types import Receive, Scope, Send

from teacher_server.access.certificates import Certificates
from teacher_server.access.descriptors import ConnectionBounds
from teacher_server.http.connection.opening import Openings
from teacher_server.http.connection.table import Entry
from teacher_server.http.connection.turns import AT_ONCE, Turns
from teacher_server.http.connection.waiting import Waiting
from teacher_server.settings.limits import LimitSettings
from tests.access.pki import HOSTS, Authority
from tests.server.raw_http import Alone, alone, connected
from tests.server.running import LONG, eventually

LIVE = b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n"
# Of a TLS handshake, the first bytes.
BEGUN = b"\x16\x03\x01\x02\x00\x01"
OTHER = b"GET /v1/teacher HTTP/1.1\r\nHost: x\r\n\r\n"
PATIENT = LimitSettings()
QUEUED = 120
ROOM = ConnectionBounds(1000, 500)


class App:
    """Notes who asks for what, in the order in which it is asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str]] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.asked.append((scope["client"][0], scope["path"]))
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})


@contextlib.contextmanager
def queued(server: Alone, count: int, request: bytes, source: str = "127.0.0.1") -> Iterator[Any]:
    """Connections that have asked. The server's loop does not run before all of them have."""
    host, _, port = server.address.rpartition(":")
    with contextlib.ExitStack() as stack:
        made = []
        for _ in range(count):
            peer = socket.create_connection((host, int(port)), source_address=(source, 0))
            made.append(stack.enter_context(peer))
            peer.sendall(request)
        yield made


async def answered(peer: socket.socket) -> None:
    peer.setblocking(False)
    reading = asyncio.get_running_loop().sock_recv(peer, 65536)
    assert (await asyncio.wait_for(reading, LONG)).startswith(b"HTTP/1.1 200")


async def openings_of(server: Alone) -> Openings:
    await eventually(lambda: server.server._server.started)
    return server.server._server._acceptor._openings


def entries(address: str, count: int, *, asks_health: bool = False) -> list[Entry]:
    return [Entry(address, reserved=False, asks_health=asks_health) for _ in range(count)]


def test_addresses_take_turns_and_one_keeps_its_order() -> None:
    waiting = Waiting()
    many, few = entries("a", 5), entries("b", 2)
    for entry in (*many, *few):
        waiting.add(entry)
    late = entries("c", 1)
    assert waiting.take() is many[0]
    waiting.add(late[0])
    order = [few[0], many[1], late[0], few[1], many[2], many[3], many[4]]
    assert [waiting.take() for _ in order] == order
    assert (waiting.take(), len(waiting)) == (None, 0)


def test_health_has_every_other_turn() -> None:
    waiting = Waiting()
    others, health = entries("a", 3), entries("a", 5, asks_health=True)
    for entry in (*others, *health):
        waiting.add(entry)
    found = [waiting.take() for _ in range(8)]
    assert [entry is not None and entry.asks_health for entry in found[:6]] == [True, False] * 3
    assert [entry for entry in found if entry in health] == health
    assert [entry for entry in found if entry in others] == others


def test_who_leaves_the_line_holds_up_nobody() -> None:
    waiting = Waiting()
    first, second = entries("a", 2)
    other = entries("b", 1)[0]
    for entry in (first, second, other):
        waiting.add(entry)
    waiting.discard(first)
    waiting.discard(first)
    waiting.discard(other)
    assert len(waiting) == 1
    assert [waiting.take(), waiting.take()] == [second, None]


async def test_another_address_is_next_whatever_one_has_queued() -> None:
    app = App()
    async with alone(app, PATIENT, ROOM) as server:
        with (
            queued(server, QUEUED, OTHER),
            queued(server, 1, OTHER, source="127.0.0.2") as (neighbour,),
        ):
            await answered(neighbour)
            await eventually(lambda: len(app.asked) == QUEUED + 1)
    # Of those that were taken at the same time, one is before it; a turn takes 64.
    assert app.asked.index(("127.0.0.2", "/v1/teacher")) <= 8


async def test_health_is_next_whatever_its_address_has_queued() -> None:
    app = App()
    async with alone(app, PATIENT, ROOM) as server:
        with queued(server, QUEUED, OTHER), queued(server, 1, LIVE) as (probe,):
            await answered(probe)
            await eventually(lambda: len(app.asked) == QUEUED + 1)
    assert app.asked.index(("127.0.0.1", "/livez")) <= 8


async def test_health_is_answered_beside_more_than_its_address_may_have() -> None:
    app = App()
    async with alone(app, PATIENT, ConnectionBounds(40, 20)) as server:
        with queued(server, 1, LIVE) as (probe,), queued(server, QUEUED, OTHER):
            await answered(probe)


async def test_a_connection_is_a_socket_until_it_asks() -> None:
    async with alone(App(), PATIENT) as server, connected(server.address) as peer:
        await eventually(lambda: len(server.server.table) == 1)
        openings = await openings_of(server)
        assert (len(openings._silent), len(openings._connections)) == (1, 0)
        await peer.send(LIVE)
        assert (await peer.answer()).status == 200
        assert (len(openings._silent), len(openings._connections)) == (0, 1)


async def test_who_has_asked_does_not_give_way_as_silent_before_the_loop_has_seen_it() -> None:
    async with alone(App(), PATIENT, ConnectionBounds(20, 10)) as server:
        openings = await openings_of(server)
        with queued(server, 1, b"") as (asking,), contextlib.ExitStack() as stack:
            await eventually(lambda: len(openings._silent) == 1)
            asking.sendall(LIVE)
            for _ in range(15):  # in one turn of the loop
                mine, other = socket.socketpair()
                stack.enter_context(other)
                openings.take(mine, "127.0.0.1")
            await answered(asking)


async def test_who_leaves_in_silence_leaves_nothing() -> None:
    async with alone(App(), PATIENT) as server:
        openings = await openings_of(server)
        async with connected(server.address):
            await eventually(lambda: len(openings._silent) == 1)
        await eventually(lambda: len(server.server.table) == 0)
        assert not openings._taken
        assert server.cut == []


async def test_who_left_while_it_waited_is_not_opened(monkeypatch: pytest.MonkeyPatch) -> None:
    turns: list[Callable[[], None]] = []
    app = App()
    async with alone(app, PATIENT, ROOM) as server:
        openings = await openings_of(server)
        with monkeypatch.context() as held:
            held.setattr(Turns, "add", lambda self, piece: turns.append(piece))
            with queued(server, 1, OTHER) as (first,):
                await eventually(lambda: len(openings) == 1)
                with queued(server, 20, OTHER):
                    await eventually(lambda: len(openings) == 21)
                await eventually(lambda: sum(map(left, openings._taken.values())) == 20)
                held.undo()
                (turn,) = turns
                turn()
                await answered(first)
        await eventually(lambda: len(server.server.table) == 0)
    assert len(app.asked) <= 2  # the last one was alone
    assert server.cut == ["left"] * (21 - len(app.asked))


def left(taken: Any) -> bool:
    state: bytes = taken.accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)
    return state[0] != 1


async def test_opening_has_a_part_of_the_loops_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a connection costs until its first request is there is charged to the openings."""
    loop, pauses = asyncio.get_running_loop(), 0
    later, now = loop.call_later, 0.0

    def clock() -> float:
        nonlocal now
        now += AT_ONCE / 2
        return now

    def watched(seconds: float, call: Any, *rest: Any) -> asyncio.TimerHandle:
        nonlocal pauses
        pauses += getattr(call, "__self__", None) is turns
        return later(seconds, call, *rest)

    app = App()
    async with alone(app, PATIENT, ROOM) as server:
        turns = (await openings_of(server))._host.opening
        turns._clock = clock
        monkeypatch.setattr(loop, "call_later", watched)
        with queued(server, 20, OTHER):
            await eventually(lambda: len(app.asked) == 20)
        assert turns._clock is clock
        # A piece, the making of the connection and the first read: three halves, twice each.
        assert pauses >= 10
        assert now >= 20 * 3 * 2 * AT_ONCE / 2


@pytest.mark.parametrize("gives_way_to", ["a new caller", "nobody has files"])
async def test_a_handshake_that_failed_ends_itself_alone(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    gives_way_to: str,
) -> None:
    """Plain HTTP sent to the TLS port, and the connection has to go before that is noted."""
    pair = Authority(tmp_path, "ca").issue("server", *HOSTS)
    certificates = Certificates(pair.cert, pair.key, None)
    async with alone(App(), PATIENT, ConnectionBounds(1, 1), certificates) as server:
        openings, done = await openings_of(server), asyncio.Event()
        acceptor, opened = server.server._server._acceptor, openings._opened

        def before(entry: Entry, accepted: socket.socket, task: asyncio.Task[None]) -> None:
            assert isinstance(task.exception(), ssl.SSLError)
            with contextlib.ExitStack() as stack:
                stack.callback(done.set)
                if gives_way_to == "a new caller":
                    openings.take(mine, "127.0.0.1")
                else:
                    acceptor._make_room()
                opened(entry, accepted, task)

        mine, other = socket.socketpair()
        monkeypatch.setattr(openings, "_opened", before)
        with other:
            async with connected(server.address) as peer:
                await peer.send(LIVE)
                await asyncio.wait_for(done.wait(), LONG)
                await peer.rest()
        assert acceptor.failure is None
        assert [record for record in caplog.records if record.exc_info] == []
        assert server.cut.count("no_handshake") == 1
        monkeypatch.undo()
        await eventually(lambda: len(server.server.table) == 0)
        mine.close()
        async with connected(server.address, tls_of(tmp_path)) as peer:
            await peer.send(LIVE)
            assert (await peer.answer()).status == 200


async def test_one_that_gives_way_is_ended_whatever_it_had_come_to(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Silent, in its handshake, and open: each one's caller sees the end, and nothing is kept."""
    pair = Authority(tmp_path, "ca").issue("server", *HOSTS)
    certificates = Certificates(pair.cert, pair.key, None)
    async with alone(App(), PATIENT, ConnectionBounds(1, 1), certificates) as server:
        openings = await openings_of(server)
        async with connected(server.address) as silent:
            await eventually(lambda: len(openings._silent) == 1)
            async with connected(server.address) as shaking:
                assert await silent.rest() == b""
                await shaking.send(BEGUN)
                await eventually(lambda: len(openings._opening) == 1)
                async with connected(server.address, tls_of(tmp_path)) as first:
                    assert await shaking.rest() == b""
                    await first.send(LIVE)
                    assert (await first.answer()).status == 200
                    async with connected(server.address, tls_of(tmp_path)) as second:
                        await second.send(LIVE)
                        assert (await second.answer()).status == 200
                        assert b"HTTP" not in await first.rest()
                        assert len(openings._connections) == 1
                        assert not openings._opening
                        assert not openings._taken
        assert server.cut == ["gave_way"] * 3
    assert [record for record in caplog.records if record.exc_info] == []


async def test_what_one_connection_raises_ends_that_one(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async with alone(App(), PATIENT) as server:
        openings = await openings_of(server)

        def fails(accepted: socket.socket, address: str) -> None:
            raise AttributeError("of one")

        with monkeypatch.context() as broken:
            broken.setattr(openings, "_take", fails)
            for _ in range(3):
                async with connected(server.address) as peer:
                    assert await peer.rest() == b""
        assert server.server._server._acceptor.failure is None
        assert sum(record.exc_info is not None for record in caplog.records) == 1
        async with connected(server.address) as peer:
            await peer.send(LIVE)
            assert (await peer.answer()).status == 200


def tls_of(folder: Path) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=str(folder / "ca.pem"))
