"""Which connection of gRPC's gives way, and who looks at them: never the event loop."""

from __future__ import annotations

import asyncio
import os
import socket
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from teacher_server.access.descriptors import ConnectionBounds
from teacher_server.grpc import connections
from teacher_server.grpc.connections import Connections
from teacher_server.grpc.sockets import Peer, Sockets
from tests.server.running import LONG, running
from tests.support.http2 import raw_caller

TIME = 100.0


class Seen(Connections):
    """Its connections are what the test says, at a time that the test sets."""

    def __init__(self, total: int, per_address: int, patch: pytest.MonkeyPatch) -> None:
        super().__init__(ConnectionBounds(total, per_address), str)
        self.now = TIME
        patch.setattr(connections, "time", SimpleNamespace(monotonic=lambda: self.now))

    def look(self, *peers: Peer) -> set[Peer]:
        """Those that go, a second later."""
        self.now += 1.0
        self._note(peers)
        return self._beyond()

    def called(self, *peers: Peer) -> None:
        """Each made a call that is over."""
        for peer in peers:
            self.calls[f"ipv4:{peer.host}:{peer.port}"] = 0


def test_those_that_never_called_go_first_and_those_with_a_call_never(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found = Seen(8, 4, monkeypatch)
    far = [Peer("10.0.0.1", port) for port in range(6)]
    near = [Peer(f"10.0.1.{number}", 1) for number in range(4)]
    found.calls.update(["ipv4:10.0.0.1:0", "ipv4:10.0.1.0:1", "ipv4:10.0.9.9:9"])
    # Of the address with too many, one that is not calling; then those that never did.
    (one,) = found.look(*far[:5])
    assert one in far[1:5]
    assert found.look(*far[:4], *near[:3]) == set()
    gone = found.look(*far, *near)
    assert far[0] not in gone
    assert near[0] not in gone
    assert len({*far, *near} - gone) == 7
    found.called(far[0], near[0])
    found.calls["ipv4:10.0.9.9:9"] = 0
    later = [Peer(f"10.0.2.{number}", 1) for number in range(12)]
    assert found.look(far[0], near[0], *later) <= {*later}
    assert not found.calls, "what is over, or gone, is not counted any longer"


def test_those_that_called_once_give_way_the_longest_idle_first(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found = Seen(16, 8, monkeypatch)
    ours = [Peer("10.0.0.1", port) for port in range(8)]
    theirs = [Peer("10.0.0.2", port) for port in range(7)]
    found.called(*ours, *theirs)
    (gone,) = found.look(*ours, *theirs)
    assert gone in ours, "of the address that has most"
    found.called(*ours[1:])
    assert found.look(*ours, *theirs) == {ours[0]}, "each look forgot when a call was"
    found.called(*ours[:4])
    more = [Peer("10.0.0.3", port) for port in range(3)]
    stranger = Peer("10.0.0.4", 1)
    found.called(*more)
    gone = found.look(*ours, *theirs, *more, stranger)
    assert stranger in gone
    assert len(gone) == 5
    assert gone & {*ours} <= {*ours[4:]}, "those that are idle for longest"
    assert not gone & {*more}, "their address has few"


def test_one_with_a_call_in_progress_stays_whatever_comes(monkeypatch: pytest.MonkeyPatch) -> None:
    found = Seen(8, 8, monkeypatch)
    busy = [Peer("10.0.0.1", port) for port in range(8)]
    found.calls.update(f"ipv4:10.0.0.1:{peer.port}" for peer in busy)
    assert found.look(*busy) == set()


def test_the_address_of_ipv6_is_its_network() -> None:
    assert Peer("2001:db8::1", 1).address == Peer("2001:db8::2", 9).address
    assert Peer("2001:db8:0:1::1", 1).address != Peer("2001:db8::2", 9).address


@pytest.mark.asyncio
async def test_the_event_loop_looks_at_no_descriptor(
    tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lookers: set[str] = set()
    listdir = os.listdir

    def listed(path: Any = ".") -> list[str]:
        if str(path) == "/dev/fd":
            lookers.add(threading.current_thread().name)
        return listdir(path)

    async with running({"default": tiny_model_dir}, monkeypatch) as server:
        monkeypatch.setattr(os, "listdir", listed)
        async with raw_caller(server.server.grpc_address):
            async with raw_caller(server.server.grpc_address):
                await shown(server, 3)  # the fixture's client has one
            await shown(server, 2)
        await shown(server, 1)
    assert lookers
    assert threading.main_thread().name not in lookers


async def shown(server: Any, count: int) -> None:
    """Waits until the metrics show so many."""
    line = f'lsm_teacher_connections{{surface="grpc"}} {count}.0\n'
    async with asyncio.timeout(LONG):
        while line not in (await server.http.get("/metrics")).text:
            pass


def test_a_descriptor_that_became_another_s_is_seen() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        sockets = Sockets(port)
        with socket.create_connection(("127.0.0.1", port)) as caller:
            accepted, _ = listener.accept()
            (peer,) = found = sockets.look()
            assert peer == Peer(*caller.getsockname())
            number = accepted.detach()
            other, _ = socket.socketpair()
            os.dup2(other.fileno(), number)
            assert sockets.look() == {}
            assert not sockets.end(found[peer], peer)
            os.close(number)
