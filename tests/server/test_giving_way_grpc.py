"""Which connection of gRPC's gives way, and who looks at them: never the event loop."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from teacher_proto import AsyncTeacherClient
from teacher_proto.client.credentials import ClientCredentials

from teacher_server.access.descriptors import ConnectionBounds
from teacher_server.grpc import connections
from teacher_server.grpc import sockets as sockets_module
from teacher_server.grpc.connections import Connections
from teacher_server.grpc.giving_way import FLOOD, HELD_SECONDS, MANY
from teacher_server.grpc.sockets import Peer, Sockets
from teacher_server.listen import BACKLOG, keep_silent_ones_out
from tests.server.running import LONG, http_client, running
from tests.support.http2 import PREFACE, raw_caller
from tests.support.listeners import SYN_AGAIN, accepted_by, may_wait

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
        self._forget(self._note(peers))
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
    assert stranger not in gone, "it came only now"
    assert len(gone) == 5
    assert gone & {*ours} <= {*ours[4:]}, "those that are idle for longest"
    assert not gone & {*more}, "their address has few"


def test_who_came_only_now_goes_last_if_they_are_few(monkeypatch: pytest.MonkeyPatch) -> None:
    found = Seen(16, 16, monkeypatch)  # two places are kept
    idle = [Peer("10.0.0.1", port) for port in range(14)]
    found.called(*idle)
    assert found.look(*idle) == set()
    new = [Peer("10.0.0.2", port) for port in range(3)]
    gone = found.look(*idle, *new)
    assert gone & {*new} == {new[0]}, "one of three that came, which are one too many"
    assert len(gone & {*idle}) == 2
    assert found.look(*idle, new[2]) == {new[2]}, "a second later it has not called"


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


def test_what_a_caller_sent_who_has_left_need_not_be_read() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        sockets = Sockets(listener.getsockname()[1])
        with (
            accepted_by(listener, bytes(10_000)) as gone,
            socket.create_connection(listener.getsockname()),
            listener.accept()[0],
        ):
            peers = sockets.look()
            assert len(peers) == 2
            (peer,) = sockets.left(peers)
            assert peers[peer] == gone.fileno()
            assert sockets.end(peers[peer], peer, unread=True)
            with pytest.raises(ConnectionResetError):
                gone.recv(1)
            assert not sockets.end(peers[peer], peer, unread=True), "it is no connection any more"
            assert len(sockets.look()) == 1, "what was ended is not found again"


def test_where_a_connection_cannot_be_taken_apart_it_is_shut_down(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As on macOS, whose connect takes no address of no family."""
    monkeypatch.setattr(sockets_module, "_take_apart", lambda descriptor: False)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        sockets = Sockets(listener.getsockname()[1])
        with (
            socket.create_connection(listener.getsockname()) as caller,
            listener.accept()[0],
        ):
            caller.settimeout(LONG)
            ((peer, number),) = sockets.look().items()
            assert sockets.end(number, peer, unread=True)
            assert caller.recv(1) == b""
            assert sockets.look() == {}


def test_a_system_that_refuses_to_keep_silent_ones_is_asked_no_more(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
        keep_silent_ones_out(other, 10.0)
    assert "connections that say nothing are accepted too" in caplog.text


@pytest.mark.parametrize(("count", "many"), [(MANY - 1, False), (FLOOD - 1, True)])
def test_those_who_left_go_where_many_come_and_go(count: int, many: bool) -> None:
    reasons: list[str] = []
    found = Connections(ConnectionBounds(100, 100), reasons.append)
    with socket.create_server(("127.0.0.1", 0)) as listener, contextlib.ExitStack() as stack:
        found._sockets = Sockets(listener.getsockname()[1])
        for _ in range(count):
            stack.enter_context(accepted_by(listener, b"PRI"))
        assert found._tend() is many
        assert reasons == ["left"] * (count if many else 0)
        assert len(found) == (0 if many else count)
        assert found._tend() is False, "nobody came or went"
        assert reasons == ["left"] * (count if many else 0), "each is counted once"


def test_in_a_flood_few_wait_to_be_accepted(monkeypatch: pytest.MonkeyPatch) -> None:
    now = TIME
    monkeypatch.setattr(connections, "time", SimpleNamespace(monotonic=lambda: now))
    found = Connections(ConnectionBounds(100, 100), str)
    with (
        socket.create_server(("127.0.0.1", 0), backlog=1000) as listener,
        contextlib.ExitStack() as stack,
    ):
        found._sockets = Sockets(listener.getsockname()[1])

        def come(count: int) -> None:
            for _ in range(count):
                stack.enter_context(socket.create_connection(listener.getsockname()))
                stack.enter_context(listener.accept()[0])

        come(FLOOD - 1)
        found._tend()
        assert may_wait(listener) == 1000, "they were few"
        come(FLOOD)
        found._tend()
        assert may_wait(listener) == connections.WAITING_IN_FLOOD
        now += SYN_AGAIN
        come(1)
        assert found._tend(), "looks are often meanwhile"
        assert may_wait(listener) == connections.WAITING_IN_FLOOD, "those held back come again"
        now += HELD_SECONDS
        found._tend()
        most = int(Path("/proc/sys/net/core/somaxconn").read_text())
        assert may_wait(listener) == min(BACKLOG, most)


def test_a_flood_that_was_not_braked_is_braked_at_the_next_look(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found = Connections(ConnectionBounds(100, 100), str)
    with socket.create_server(("127.0.0.1", 0), backlog=1000) as listener:
        found._sockets = sockets = Sockets(listener.getsockname()[1])

        def no_file_left() -> Iterator[socket.socket]:
            raise OSError(24, "no file left")

        with monkeypatch.context() as patch:
            patch.setattr(sockets, "listeners", no_file_left)
            with pytest.raises(OSError, match="no file left"):
                found._hold_back({"127.0.0.2": FLOOD})
        found._hold_back({"127.0.0.2": FLOOD})
        assert may_wait(listener) == connections.WAITING_IN_FLOOD


@pytest.mark.asyncio
async def test_a_look_that_fails_is_told_and_the_next_one_is_made(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    looks = 0
    third = threading.Event()

    def look(self: Sockets) -> dict[Peer, int]:
        nonlocal looks
        looks += 1
        if looks < 3:
            raise RuntimeError("of this look")
        third.set()
        return {}

    monkeypatch.setattr(Sockets, "look", look)
    monkeypatch.setattr(connections, "LOOK_EVERY", 0.001)
    found = Connections(ConnectionBounds(100, 100), str)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        found.watch(listener.getsockname()[1], 1.0)
        assert await asyncio.to_thread(third.wait, LONG)
        await found.stop()
    told = [record for record in caplog.records if record.levelname == "ERROR"]
    assert len(told) == 1
    assert "of this look" in str(told[0].exc_info)


def test_a_listener_of_another_port_is_left_alone() -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as ours,
        socket.create_server(("127.0.0.1", 0)) as other,
    ):
        for listener in Sockets(ours.getsockname()[1]).listeners():
            keep_silent_ones_out(listener, 10.0)
        kept = [
            one.getsockopt(socket.IPPROTO_TCP, socket.TCP_DEFER_ACCEPT) > 0 for one in (ours, other)
        ]
        assert kept == [True, False]


@pytest.mark.asyncio
async def test_silent_connections_take_neither_a_place_nor_a_descriptor(
    tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ten times as many as there may be, on each wire; new callers are served at once."""
    limits = {"max_connections": 8, "max_connections_per_address": 8}
    async with running({"default": tiny_model_dir}, monkeypatch, limits=limits) as server:
        ports = [server.server.grpc_address, server.server.http_address]
        before = len(os.listdir("/dev/fd"))
        with contextlib.ExitStack() as stack:
            for host, _, port in (address.rpartition(":") for address in ports):
                for _ in range(80):
                    stack.enter_context(socket.create_connection((host, int(port))))
            for number in range(4):
                async with AsyncTeacherClient(ports[0], run=f"new-{number}", max_attempts=1) as new:
                    await new.get_teacher(timeout=LONG)
                async with http_client(ports[1], ClientCredentials()) as http:
                    assert (await http.get("/livez")).status_code == 200
            # The callers' own ends, and what a client leaves for a moment.
            assert len(os.listdir("/dev/fd")) < before + 160 + 40
        text = (await server.http.get("/metrics")).text
        assert 'connections_cut_total{reason="gave_way"' not in text


@pytest.mark.asyncio
async def test_connections_are_looked_at_while_the_event_loop_is_busy(
    tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    limits = {"max_connections": 8, "max_connections_per_address": 4}
    async with running({"default": tiny_model_dir}, monkeypatch, limits=limits) as server:
        host, _, port = server.server.grpc_address.rpartition(":")
        with contextlib.ExitStack() as stack:
            made = [
                stack.enter_context(socket.create_connection((host, int(port)))) for _ in range(6)
            ]
            for one in made:
                one.settimeout(LONG)
                one.sendall(PREFACE)
            # The loop does nothing meanwhile: this waits in its thread.
            with contextlib.suppress(ConnectionResetError):
                while made[0].recv(4096):
                    pass


def test_a_call_that_began_meanwhile_is_not_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    found = Seen(8, 8, monkeypatch)
    found.calls["ipv4:10.0.0.1:1"] = 0
    over = found._note([Peer("10.0.0.1", 1)])
    found.calls["ipv4:10.0.0.1:1"] += 1
    found._forget([*over, "ipv4:10.0.0.2:2"])
    assert dict(found.calls) == {"ipv4:10.0.0.1:1": 1}
