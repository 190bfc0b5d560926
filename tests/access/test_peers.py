"""Which peers count as one: the same over both wires, and for all that is shared or bounded."""

from __future__ import annotations

import pytest

from teacher_server.access.guard import Caller, Guard
from teacher_server.access.peers import address_of, neighbourhood, split
from teacher_server.access.strangers import network


@pytest.mark.parametrize(
    ("http", "grpc", "counted"),
    [
        ("10.1.2.3:50", "ipv4:10.1.2.3:51", "10.1.2.3"),
        ("::ffff:10.1.2.3:50", "ipv6:%5B::ffff:10.1.2.3%5D:51", "10.1.2.3"),
        ("2001:db8:1:2::6:50", "ipv6:%5B2001:db8:1:2:9::1%5D:51", "2001:db8:1:2::/64"),
        ("fe80::1%eth0:50", "ipv6:%5Bfe80::2%25eth0%5D:51", "fe80::/64"),
        ("", "unix:/tmp/socket", ""),
    ],
)
def test_a_host_is_one_owner_of_work_over_both_wires(http: str, grpc: str, counted: str) -> None:
    callers = [Caller("http", "POST /v1/score", http), Caller("grpc", "Score", grpc)]
    for caller in callers:
        Guard().admit(caller, (), ())
        assert caller.work_owner == address_of(caller.peer) == counted
        assert neighbourhood(split(caller.peer)[0]) == counted
    assert network(http) == network(grpc)


def test_other_networks_are_other_owners() -> None:
    peers = ["10.0.0.1:5", "10.0.0.2:5", "2001:db8::1:5", "2001:db8:0:1::1:5"]
    assert len({address_of(peer) for peer in peers}) == 4


def test_a_peer_is_its_address_and_port() -> None:
    assert split("ipv4:127.0.0.1:1234") == ("127.0.0.1", 1234)
    assert split("ipv6:%5B::1%5D:1234") == ("::1", 1234)
    assert split("::1:1234") == ("::1", 1234)
    assert split("unix:/tmp/x:5") == split("localhost:5") == split("10.0.0.1") == ("", 0)
