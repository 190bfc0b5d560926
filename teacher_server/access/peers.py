"""The far end of a connection: which peers count as one, whichever wire names them."""

from __future__ import annotations

import asyncio.trsock
import functools
import ipaddress
import socket
import sys
from urllib.parse import unquote

# What one place usually has of IPv6.
IPV6_PREFIX = 64
# The states of a TCP connection that both ends have open (Linux, tcp_states.h): established, and
# for a moment, where it is accepted at once, about to be.
OPEN = (1, 3)


@functools.lru_cache(maxsize=4096)
def address_of(peer: str) -> str:
    """The address that this peer counts under: an IPv4 address, or a /64 of IPv6.

    Args:
        peer: ``127.0.0.1:5``, ``::1:5`` or gRPC's ``ipv4:127.0.0.1:5`` and ``ipv6:%5B::1%5D:5``.

    Returns:
        "" for one that has no IP address, such as a Unix socket.
    """
    return neighbourhood(split(peer)[0])


def split(peer: str) -> tuple[str, int]:
    """A peer's (plain IP address, port); ("", 0) for one that has none."""
    host, _, port = unquote(peer).rpartition(":")
    host = plain(host.removeprefix("ipv4:").removeprefix("ipv6:").strip("[]"))
    return (host, int(port)) if host and port.isdecimal() else ("", 0)


def plain(host: str) -> str:
    """An IP address as it is usually written, that of IPv4 also where it came as IPv6; "" for
    what is none."""
    try:
        found = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return ""
    mapped = found.ipv4_mapped if isinstance(found, ipaddress.IPv6Address) else None
    return str(mapped or found)


def has_left(connection: socket.socket | asyncio.trsock.TransportSocket) -> bool:
    """Whether the far end has closed its side; True where Linux says so, at once, whatever of
    its bytes is still to be read."""
    # Other systems may have a TCP_INFO too, of another form.
    if sys.platform != "linux" or connection.family == socket.AF_UNIX:
        return False
    state: bytes = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)
    return state[0] not in OPEN


@functools.lru_cache(maxsize=4096)
def neighbourhood(host: str) -> str:
    """The address that a host counts under, "" where it has no IP address."""
    return network(host, 32, IPV6_PREFIX).removesuffix("/32")


def network(host: str, ipv4_prefix: int, ipv6_prefix: int) -> str:
    """The network of a host with so many bits; "" where it has no IP address."""
    if not (host := plain(host)):
        return ""
    found = ipaddress.ip_address(host)
    prefix = ipv4_prefix if found.version == 4 else ipv6_prefix
    return str(ipaddress.ip_network((int(found), prefix), strict=False))
