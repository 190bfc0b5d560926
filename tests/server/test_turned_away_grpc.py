"""What stays open of an address whose new gRPC connections are turned away."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace

import pytest

from teacher_server.access.descriptors import ConnectionBounds
from teacher_server.grpc import connections, giving_way
from teacher_server.grpc.connections import Connections
from teacher_server.grpc.giving_way import FEW, FIRST, FLOOD, HANDSHAKE_SECONDS, WITHIN
from teacher_server.grpc.sockets import Peer, Sockets
from tests.server.running import LONG, eventually, running
from tests.support.http2 import PREFACE, message, raw_caller
from tests.support.listeners import SYN_SENT, accepted_by, begun

TIME = 100.0
OURS = "127.0.0.2"
HEALTH = "/grpc.health.v1.Health/"
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="it is Linux that turns away")


class Port(contextlib.ExitStack):
    """A listener, what comes to it, and the looks at it, at a time that the test sets."""

    def __init__(self, patch: pytest.MonkeyPatch, total: int = 200) -> None:
        super().__init__()
        self.now = TIME
        patch.setattr(connections, "time", SimpleNamespace(monotonic=lambda: self.now))
        self.listener = self.enter_context(socket.create_server(("127.0.0.1", 0)))
        self.found = Connections(ConnectionBounds(total, total), str)
        self.found._sockets = self.sockets = Sockets(self.listener.getsockname()[1])

    def come(self, source: str = OURS) -> str:
        """A connection that stays; gRPC's name of it."""
        where = self.listener.getsockname()
        self.enter_context(socket.create_connection(where, source_address=(source, 0)))
        accepted = self.enter_context(self.listener.accept()[0])
        return "ipv4:{}:{}".format(*accepted.getpeername())

    def flood(self) -> None:
        """So many that came only to go that their address is turned away."""
        with contextlib.ExitStack() as stack:
            for _ in range(FLOOD):
                stack.enter_context(accepted_by(self.listener, b"PRI", source=OURS))
            self.found._tend()

    @property
    def away(self) -> bool:
        return begun(self.listener, OURS) == SYN_SENT


@pytest.fixture
def port(monkeypatch: pytest.MonkeyPatch) -> Iterator[Port]:
    with Port(monkeypatch) as found:
        yield found


def test_what_is_open_with_a_call_stays(port: Port) -> None:
    port.found.calls[port.come()] = 1
    port.found.asked.add(port.come())
    port.come("127.0.0.1")
    port.come()
    port.found._tend()
    port.now += HANDSHAKE_SECONDS
    port.flood()
    assert port.away
    assert len(port.found) == 3, "one of the service, one of health, and one of another address"


def test_who_asked_for_health_is_known_until_it_is_gone(port: Port) -> None:
    with contextlib.ExitStack() as stack:
        one = stack.enter_context(accepted_by(port.listener, b"PRI", source=OURS))
        name = "ipv4:{}:{}".format(*one.getpeername())
        port.found.asked.add(name)
        port.found._tend()
        assert port.found.asked == {name}
    port.found._tend()
    assert not port.found.asked


def test_a_first_call_that_comes_during_the_look_is_known(
    port: Port, monkeypatch: pytest.MonkeyPatch
) -> None:
    called, asked = port.come(), port.come()
    port.come()
    port.found._tend()
    port.now += HANDSHAKE_SECONDS
    look = port.sockets.left

    def left(peers: Mapping[Peer, int]) -> set[Peer]:
        port.found.calls[called] += 1
        port.found.asked.add(asked)
        return look(peers)

    monkeypatch.setattr(port.sockets, "left", left)
    port.flood()
    assert port.away
    assert len(port.found) == 2, "the third one made none"


def test_callers_who_come_together_after_a_flood_have_the_time_of_a_handshake(port: Port) -> None:
    """Several behind the address of the flood: they come, are turned away, and call then."""
    port.flood()
    port.now += FIRST
    port.found._tend()
    names = [port.come() for _ in range(FLOOD + 2)]
    port.found._tend()
    assert port.away, "it is known, and many came"
    port.now += HANDSHAKE_SECONDS / 2
    port.found._tend()
    assert len(port.found) == len(names)
    port.found.calls.update(names[1:])
    port.now += HANDSHAKE_SECONDS
    port.found._tend()
    assert len(port.found) == len(names) - 1, "one did not call"
    port.found.answered.add(names[1])
    port.found._tend()
    assert not port.away, "one was sent a reply"


def test_few_of_an_address_have_the_time_of_a_handshake(monkeypatch: pytest.MonkeyPatch) -> None:
    for total, few in ((400, FEW), (80, 80 // 8)):
        with Port(monkeypatch, total) as port:
            for _ in range(FEW + 5):
                port.come()
            port.flood()
            assert port.away
            assert len(port.found) == few


def test_one_that_grpc_closes_during_a_look_counts_once(
    port: Port, monkeypatch: pytest.MonkeyPatch
) -> None:
    look = port.sockets.left
    opened = contextlib.ExitStack()

    def left(peers: Mapping[Peer, int]) -> set[Peer]:
        gone = look(peers)
        opened.close()
        return gone

    monkeypatch.setattr(port.sockets, "left", left)
    for number in (FLOOD - 1, FLOOD):
        for _ in range(number):
            opened.enter_context(accepted_by(port.listener, b"PRI", source=OURS))
        port.found._tend()
        port.found._tend()
        assert port.away is (number == FLOOD)
        port.now += WITHIN


@pytest.mark.asyncio
async def test_health_goes_on_over_what_is_open(
    tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(giving_way, "HANDSHAKE_SECONDS", 0.0)
    async with (
        running({"default": tiny_model_dir}, monkeypatch) as server,
        raw_caller(server.server.grpc_address, source=OURS) as watches,
        raw_caller(server.server.grpc_address, source=OURS) as checks,
        raw_caller(server.server.grpc_address, source=OURS) as silent,
    ):
        for caller, method in ((watches, "Watch"), (checks, "Check")):
            caller.begin(1, HEALTH + method)
            await caller.send(1, message(0), end=True)
        await eventually(lambda: watches.data > 0 and checks.data > 0)
        host, _, port = server.server.grpc_address.rpartition(":")
        while not silent.ended.is_set():
            with contextlib.suppress(TimeoutError):  # it is turned away
                async with asyncio.timeout(0.1):
                    _, writer = await asyncio.open_connection(host, int(port), local_addr=(OURS, 0))
                    writer.write(PREFACE)
                    writer.close()
        for caller in (watches, checks):
            before = caller.data
            caller.begin(3, HEALTH + "Check")
            await caller.send(3, message(0), end=True)
            async with asyncio.timeout(LONG):
                while caller.data == before:
                    assert not caller.ended.is_set()
                    await asyncio.sleep(0.005)
