"""Addresses whose gRPC connections come only to go are turned away by the system, for a while."""

from __future__ import annotations

import contextlib
import socket
import sys
from collections.abc import Collection, Iterator
from types import SimpleNamespace

import pytest

from teacher_server.access.descriptors import ConnectionBounds
from teacher_server.access.peers import has_left, neighbourhood
from teacher_server.grpc import connections
from teacher_server.grpc.connections import Connections
from teacher_server.grpc.giving_way import (
    FIRST,
    FLOOD,
    HANDSHAKE_SECONDS,
    HELD_SECONDS,
    MOST,
    WITHIN,
    Arrivals,
    Floods,
)
from teacher_server.grpc.sockets import Sockets
from teacher_server.listen import MOST_TURNED_AWAY, turn_away
from tests.support.listeners import ESTABLISHED, SYN_AGAIN, SYN_SENT, accepted_by, begun, may_wait

TIME = 100.0
# More than the system takes for a connection that is not read.
MUCH = bytes(250_000)
linux = pytest.mark.skipif(sys.platform != "linux", reason="it is Linux that turns away")


def test_an_address_of_which_many_leave_is_turned_away_and_longer_each_time() -> None:
    floods, now = Floods(), TIME
    assert floods.note({"a": FLOOD - 1, "b": 1}, {}, (), now) == frozenset()
    assert not floods.expected(now)
    for seconds in (FIRST, 2 * FIRST, 4 * FIRST, MOST, MOST):
        assert floods.note({"a": FLOOD}, {}, (), now) == {"a"}
        assert floods.note({"a": FLOOD}, {}, (), now + seconds * 0.9) == {"a"}, "of before"
        now += seconds
        assert floods.note({}, {}, (), now) == frozenset()
        assert floods.expected(now)
    now += MOST
    assert not floods.expected(now)
    floods.note({"a": FLOOD}, {}, (), now)
    assert floods.note({}, {}, (), now + FIRST) == frozenset(), "what was long ago is forgotten"


def test_one_that_is_known_is_turned_away_again_as_its_connections_come() -> None:
    floods = Floods()
    floods.note({"a": FLOOD}, {}, (), TIME)
    now = TIME + FIRST
    assert floods.note({}, {"a": FLOOD - 1, "b": FLOOD}, (), now) == frozenset()
    assert floods.note({}, {"a": 1, "b": FLOOD}, (), now) == {"a"}


def test_others_wait_until_the_address_that_floods_is_known_and_no_longer() -> None:
    arrivals = Arrivals(1000)
    assert not arrivals.flood({"a": FLOOD - 1}, (), TIME)
    assert arrivals.flood({"a": FLOOD, "b": 1}, (), TIME)
    assert arrivals.flood({}, {"b"}, TIME)
    assert not arrivals.flood({}, {"a", "b"}, TIME)
    assert not arrivals.flood({"a": FLOOD}, {"a"}, TIME)
    assert arrivals.flood({str(number): 1 for number in range(FLOOD)}, (), TIME), "each has one"


def test_those_who_were_held_back_find_the_way_held_when_they_ask_again() -> None:
    arrivals = Arrivals(1000)
    assert arrivals.flood({"a": FLOOD}, (), TIME)
    assert arrivals.flood({}, (), TIME + SYN_AGAIN)
    assert arrivals.flood({"a": FLOOD}, (), TIME + SYN_AGAIN)
    assert arrivals.flood({}, (), TIME + 2 * SYN_AGAIN)
    assert not arrivals.flood({}, (), TIME + SYN_AGAIN + HELD_SECONDS)


def test_few_that_leave_within_a_moment_are_no_flood() -> None:
    floods = Floods()
    for number in range(10):
        assert not floods.note({"a": FLOOD - 1}, {}, (), TIME + number * WITHIN)


def test_an_address_of_a_caller_who_stays_is_not_turned_away() -> None:
    floods = Floods()
    assert floods.note({"a": FLOOD, "b": FLOOD}, {}, {"b"}, TIME) == {"a"}
    assert floods.note({}, {}, {"a"}, TIME) == frozenset(), "it called over one that came before"


def test_of_very_many_addresses_the_last_are_turned_away() -> None:
    left = {f"10.0.0.{number}": FLOOD for number in range(MOST_TURNED_AWAY + 5)}
    away = Floods().note(left, {}, (), TIME)
    assert away == {*list(left)[5:]}


@linux
def test_the_system_turns_away_these_addresses_alone() -> None:
    others = [f"10.9.8.{number}" for number in range(MOST_TURNED_AWAY // 2)]
    networks = [f"2001:db8:{number:x}::/64" for number in range(MOST_TURNED_AWAY // 2 - 1)]
    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        socket.create_connection(listener.getsockname()) as before,
    ):
        assert turn_away(listener, [*others, *networks])
        assert begun(listener, "127.0.0.2") == ESTABLISHED
        assert turn_away(listener, [*others, *networks, "127.0.0.2"])
        assert begun(listener, "127.0.0.2") == SYN_SENT
        assert begun(listener, "127.0.0.3") == ESTABLISHED
        assert turn_away(listener, ["127.0.0.1"])
        assert begun(listener, "127.0.0.1") == SYN_SENT
        accepted, _ = listener.accept()
        with accepted:
            before.sendall(b"what is open goes on")
            assert accepted.recv(100) == b"what is open goes on"
        assert turn_away(listener, ())
        assert turn_away(listener, ()), "there is no filter any more"
        assert begun(listener, "127.0.0.1") == ESTABLISHED


@linux
@pytest.mark.skipif(not socket.has_dualstack_ipv6(), reason="there is no IPv6")
def test_the_system_turns_away_networks_of_ipv6() -> None:
    with socket.create_server(("::", 0), family=socket.AF_INET6, dualstack_ipv6=True) as listener:
        port = listener.getsockname()[1]

        def state(host: str, family: int) -> int:
            with socket.socket(family) as caller:
                caller.setblocking(False)
                with contextlib.suppress(BlockingIOError):
                    caller.connect((host, port))
                found: bytes = caller.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)
            return found[0]

        assert turn_away(listener, [neighbourhood("::1"), "10.0.0.1"])
        assert state("::1", socket.AF_INET6) == SYN_SENT
        assert state("127.0.0.1", socket.AF_INET) == ESTABLISHED
        assert turn_away(listener, [neighbourhood("127.0.0.1"), "2001:db8::/64"])
        assert state("::1", socket.AF_INET6) == ESTABLISHED
        assert state("127.0.0.1", socket.AF_INET) == SYN_SENT


@linux
def test_those_who_come_only_to_go_find_no_way_in(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    now = TIME
    monkeypatch.setattr(connections, "time", SimpleNamespace(monotonic=lambda: now))
    found = Connections(ConnectionBounds(40, 40), str)
    with socket.create_server(("127.0.0.1", 0)) as listener, contextlib.ExitStack() as stack:
        found._sockets = Sockets(listener.getsockname()[1])
        waiting = may_wait(listener)
        for _ in range(FLOOD):
            stack.enter_context(accepted_by(listener, b"PRI", source="127.0.0.2"))
        assert found._tend()
        assert "127.0.0.2 come and go" in caplog.text
        assert begun(listener, "127.0.0.2") == SYN_SENT
        assert begun(listener, "127.0.0.1") == ESTABLISHED
        assert may_wait(listener) == waiting, "nobody else waits for them"
        assert found._tend(), "who is turned away may come back"
        now += FIRST
        found._tend()
        assert begun(listener, "127.0.0.2") == ESTABLISHED
        for _ in range(FLOOD - 1):
            stack.enter_context(accepted_by(listener, b"PRI", source="127.0.0.2"))
        found._tend()
        assert may_wait(listener) == waiting, "their flood will be turned away again"


@linux
def test_where_a_change_is_refused_nobody_stays_turned_away(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The system has no room for the second filter, or of two listeners one has none."""
    now, refused, asked = TIME, False, 0

    def asking(listener: socket.socket, addresses: Collection[str]) -> bool:
        nonlocal asked
        asked += bool(addresses)
        if refused and addresses:
            return False  # and changes nothing, as with a listener that was never reached
        return turn_away(listener, addresses)

    monkeypatch.setattr(connections, "time", SimpleNamespace(monotonic=lambda: now))
    monkeypatch.setattr(connections, "turn_away", asking)
    found = Connections(ConnectionBounds(100, 100), str)
    with socket.create_server(("127.0.0.1", 0)) as listener, contextlib.ExitStack() as stack:
        found._sockets = Sockets(listener.getsockname()[1])

        def flood(source: str) -> None:
            for _ in range(FLOOD):
                stack.enter_context(accepted_by(listener, b"PRI", source=source))
            found._tend()

        flood("127.0.0.2")
        assert begun(listener, "127.0.0.2") == SYN_SENT
        refused = True
        flood("127.0.0.3")
        assert asked == 2
        assert begun(listener, "127.0.0.2") == ESTABLISHED
        refused = False
        found._tend()
        assert begun(listener, "127.0.0.2") == SYN_SENT, "the next look tries again"


@linux
def test_where_no_file_is_left_for_a_change_the_next_look_makes_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = TIME
    monkeypatch.setattr(connections, "time", SimpleNamespace(monotonic=lambda: now))
    found = Connections(ConnectionBounds(100, 100), str)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        found._sockets = sockets = Sockets(listener.getsockname()[1])
        found._turn_away({"127.0.0.2": FLOOD}, {}, ())
        listeners = sockets.listeners
        looks = 0

        def once() -> Iterator[socket.socket]:
            nonlocal looks
            looks += 1
            if looks > 1:
                raise OSError(24, "no file left")
            return listeners()

        with monkeypatch.context() as patch:
            # The filter is refused, and then no file is left to take the former one away with.
            patch.setattr(connections, "turn_away", lambda listener, addresses: False)
            patch.setattr(sockets, "listeners", once)
            with pytest.raises(OSError, match="no file left"):
                found._turn_away({"127.0.0.3": FLOOD}, {}, ())
        assert begun(listener, "127.0.0.2") == SYN_SENT
        now += MOST
        found._turn_away({}, {}, ())
        assert begun(listener, "127.0.0.2") == ESTABLISHED


@linux
def test_a_filter_takes_the_place_of_one_beside_which_it_has_no_room() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        # As many as one filter may have; two of them together are more than the socket's memory.
        many = [f"2001:db8:{number:x}::/64" for number in range(700)]
        count = next(n for n in (700, 350, 175, 80) if turn_away(listener, many[:n]))
        assert turn_away(listener, [*many[:count], "127.0.0.2"])
        assert begun(listener, "127.0.0.2") == SYN_SENT
        assert turn_away(listener, [*many[:count], "127.0.0.3"])
        assert begun(listener, "127.0.0.2") == ESTABLISHED
        assert begun(listener, "127.0.0.3") == SYN_SENT


@linux
def test_a_filter_that_the_system_refuses_leaves_none() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        assert turn_away(listener, ["127.0.0.2"])
        many = [f"10.9.{number // 250}.{number % 250}" for number in range(3000)]
        assert not turn_away(listener, [*many, "127.0.0.2"]), "it is too long"
        assert begun(listener, "127.0.0.2") == ESTABLISHED


@linux
def test_who_leaves_with_a_reply_is_no_flood() -> None:
    """The 16 ranks of a node that close their channels at one moment."""
    found = Connections(ConnectionBounds(100, 100), str)
    with socket.create_server(("127.0.0.1", 0)) as listener, contextlib.ExitStack() as stack:
        found._sockets = Sockets(listener.getsockname()[1])
        for _ in range(16):
            one = stack.enter_context(accepted_by(listener, b"PRI", source="127.0.0.2"))
            name = "ipv4:{}:{}".format(*one.getpeername())
            found.calls[name] = 0
            found.answered.add(name)
        assert found._tend()
        assert begun(listener, "127.0.0.2") == ESTABLISHED
        found._tend()
        assert not found.answered, "they are gone"
        for _ in range(FLOOD):
            one = stack.enter_context(accepted_by(listener, b"PRI", source="127.0.0.2"))
            found.calls["ipv4:{}:{}".format(*one.getpeername())] = 0  # it was given up
        found._tend()
        assert begun(listener, "127.0.0.2") == SYN_SENT


@linux
@pytest.mark.parametrize("answered", [False, True])
def test_only_a_reply_shows_that_others_are_behind_an_address(answered: bool) -> None:
    """Each of a flood's connections may begin a call, and one of them is always there."""
    found = Connections(ConnectionBounds(100, 100), str)
    with socket.create_server(("127.0.0.1", 0)) as listener, contextlib.ExitStack() as stack:
        found._sockets = Sockets(listener.getsockname()[1])
        for _ in range(FLOOD):
            stack.enter_context(accepted_by(listener, b"PRI", source="127.0.0.2"))
        where = ("127.0.0.2", 0)
        stack.enter_context(socket.create_connection(listener.getsockname(), source_address=where))
        there = stack.enter_context(listener.accept()[0])
        name = "ipv4:{}:{}".format(*there.getpeername())
        found.calls[name] = 1
        if answered:
            found.answered.add(name)
        found._tend()
        assert begun(listener, "127.0.0.2") == (ESTABLISHED if answered else SYN_SENT)


def test_where_the_system_turns_nobody_away_few_wait_to_be_accepted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(connections, "turn_away", lambda listener, addresses: False)
    found = Connections(ConnectionBounds(100, 100), str)
    with (
        socket.create_server(("127.0.0.1", 0), backlog=1000) as listener,
        contextlib.ExitStack() as stack,
    ):
        found._sockets = Sockets(listener.getsockname()[1])
        for _ in range(FLOOD):
            stack.enter_context(accepted_by(listener, b"PRI", source="127.0.0.2"))
        found._tend()
        assert may_wait(listener) == connections.WAITING_IN_FLOOD


@linux
def test_who_has_left_behind_what_is_unread_floods_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """The end of a connection comes after what was sent over it, which nobody has read yet."""
    now = TIME
    reasons: list[str] = []
    monkeypatch.setattr(connections, "time", SimpleNamespace(monotonic=lambda: now))
    found = Connections(ConnectionBounds(16, 16), reasons.append)
    with socket.create_server(("127.0.0.1", 0)) as listener, contextlib.ExitStack() as stack:
        found._sockets = Sockets(listener.getsockname()[1])
        for _ in range(16 + FLOOD):
            one = stack.enter_context(accepted_by(listener, MUCH, source="127.0.0.2"))
            assert not has_left(one)
        found._tend()
        assert begun(listener, "127.0.0.2") == SYN_SENT
        few = 16 // 8  # may be about to call
        assert reasons == ["gave_way"] * (16 + FLOOD - few), "no other is left to be read"
        now += HANDSHAKE_SECONDS
        found._tend()
        for _ in range(FLOOD):
            stack.enter_context(accepted_by(listener, MUCH, source="127.0.0.2"))
        found._tend()
        assert len(reasons) == 16 + 2 * FLOOD - few, "those of the first flood had their time"
        assert begun(listener, "127.0.0.1") == ESTABLISHED


@linux
@pytest.mark.parametrize("answered", [False, True])
def test_connections_that_grpc_closed_between_two_looks_count(answered: bool) -> None:
    found = Connections(ConnectionBounds(100, 100), str)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        found._sockets = Sockets(listener.getsockname()[1])
        with contextlib.ExitStack() as stack:
            for _ in range(FLOOD):
                one = stack.enter_context(accepted_by(listener, MUCH, source="127.0.0.2"))
                if answered:
                    found.answered.add("ipv4:{}:{}".format(*one.getpeername()))
            found._tend()
            assert begun(listener, "127.0.0.2") == ESTABLISHED
        found._tend()
        assert begun(listener, "127.0.0.2") == (ESTABLISHED if answered else SYN_SENT)


@linux
def test_nobody_else_waits_once_the_address_that_floods_is_turned_away() -> None:
    found = Connections(ConnectionBounds(100, 100), str)
    with socket.create_server(("127.0.0.1", 0), backlog=1000) as listener:
        found._sockets = Sockets(listener.getsockname()[1])
        with contextlib.ExitStack() as flood:
            for _ in range(FLOOD):
                flood.enter_context(accepted_by(listener, MUCH, source="127.0.0.2"))
            found._tend()
            assert may_wait(listener) == connections.WAITING_IN_FLOOD
        found._tend()
        states = [begun(listener, "127.0.0.1") for _ in range(2 * connections.WAITING_IN_FLOOD)]
        assert states == [ESTABLISHED] * len(states)
