"""Addresses: which may be bound, how they are bound, the errors when they cannot be, and whose
new connections the system turns away."""

from __future__ import annotations

import ctypes
import errno
import ipaddress
import logging
import math
import socket
import struct
import sys
from collections.abc import Collection

from teacher_proto.channel import is_loopback
from teacher_proto.errors import ConfigurationError

log = logging.getLogger(__name__)

# Connections that wait to be accepted; the system has a lower bound of its own (somaxconn). Where
# there is no room for one, its caller tries again after a second.
BACKLOG = 4096
# Addresses that are turned away at once: the system walks through them for each new connection.
MOST_TURNED_AWAY = 64
# Of Linux (asm-generic/socket.h, linux/filter.h): instructions of a socket's filter, and where
# the header of IP begins.
ATTACH_FILTER, DETACH_FILTER = 26, 27
LOAD_WORD, LOAD_BYTE, AND, SHIFT_RIGHT, JUMP_EQUAL, JUMP, RETURN = (
    0x20, 0x30, 0x54, 0x74, 0x15, 0x05, 0x06)  # fmt: skip
IP_HEADER = 0xFFF00000
# Where the header of TCP has its flags, of IPv4 and IPv6 the sender's address.
FLAGS, SENDER, SENDER_6 = 13, IP_HEADER + 12, IP_HEADER + 8
SYN, ACK = 2, 16
Instruction = tuple[int, int, int, int]
PASS: Instruction = (RETURN, 0, 0, 0xFFFFFFFF)
DROP: Instruction = (RETURN, 0, 0, 0)


def check_exposure(
    host: str, *, credentials: bool, encrypted: bool, insecure_plaintext: bool
) -> None:
    """Refuses a host beyond loopback without credentials and TLS, unless that is allowed.

    Raises:
        ConfigurationError: anybody who reaches the port could use the teacher, or
            read the tokens of those who do.
    """
    if insecure_plaintext or is_loopback(host) or (credentials and encrypted):
        return
    needs = {"credentials": (credentials, "access.credentials_file"), "TLS": (encrypted, "tls")}
    missing = {name: setting for name, (given, setting) in needs.items() if not given}
    raise ConfigurationError(
        f"{host} can be reached from other machines, and this server has no "
        f"{' and no '.join(missing)}",
        where="host",
        fix=f"set {' and '.join(missing.values())}, bind 127.0.0.1, or give "
        "--insecure-plaintext when a proxy in front of the server takes care of it",
    )


def address(host: str, port: int) -> str:
    """``host:port``, with brackets around an IPv6 host."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def listen(host: str, port: int, setting: str) -> socket.socket:
    """A listening TCP socket; port 0 takes a free one.

    Connections accepted from it send what they have at once: asyncio sets TCP_NODELAY on
    those whose protocol is IPPROTO_TCP, and on no others.

    Raises:
        ConfigurationError: the address cannot be bound.
    """
    try:
        family, _, _, _, where = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        made = socket.create_server((str(where[0]), port), family=family, backlog=BACKLOG)
        # create_server leaves the protocol at 0, and accepted sockets inherit it.
        return socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP, made.detach())
    except socket.gaierror as error:
        raise ConfigurationError(
            f"{host!r} is not an address of this machine ({error.strerror})",
            where="host",
            fix="give an address this machine has, such as 127.0.0.1",
        ) from error
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise port_in_use(host, port, setting) from error
        raise ConfigurationError(
            f"{address(host, port)} cannot be bound: {error.strerror}",
            where=setting,
            fix="give an address this machine has and a port you may use",
        ) from error


def keep_silent_ones_out(listener: socket.socket, seconds: float) -> None:
    """The system accepts a new connection once it has sent something, or after so long (Linux).

    A connection that says nothing takes no descriptor until then, and nobody's turn. Callers of
    both wires speak first, with TLS and without.
    """
    if hasattr(socket, "TCP_DEFER_ACCEPT"):
        try:
            listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_DEFER_ACCEPT, math.ceil(seconds))
        except OSError as error:
            log.warning("connections that say nothing are accepted too: %s", error.strerror)


def turn_away(listener: socket.socket, addresses: Collection[str]) -> bool:
    """The system lets new connections of these addresses go unanswered (Linux), and theirs alone:
    what is open goes on, and their systems try again after a second. False where it cannot; it
    turns nobody away then.

    Args:
        addresses: ``access.peers.neighbourhood`` of each, ``MOST_TURNED_AWAY`` at most; none to
            turn away nobody any more.
    """
    if sys.platform != "linux":
        return not addresses
    if not addresses:
        return _turn_nobody_away(listener)
    program = _filter(addresses)
    code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *one) for one in program))
    length_and_code = struct.pack("HP", len(program), ctypes.addressof(code))
    for _ in range(2):
        try:
            listener.setsockopt(socket.SOL_SOCKET, ATTACH_FILTER, length_and_code)
            return True
        except OSError as error:
            log.debug("a filter is refused: %s", error.strerror)
            # The one before stays otherwise, and both count in the socket's memory
            # (net.core.optmem_max): the new one may have room once that is gone.
            _turn_nobody_away(listener)
    return False


def _turn_nobody_away(listener: socket.socket) -> bool:
    try:
        listener.setsockopt(socket.SOL_SOCKET, DETACH_FILTER, 0)
    except OSError as error:
        if error.errno != errno.ENOENT:  # there was no filter
            log.debug("a filter stays: %s", error.strerror)
            return False
    return True


def _filter(addresses: Collection[str]) -> list[Instruction]:
    """Drops the packets that begin a connection and come from these addresses."""
    networks = [ipaddress.ip_network(address) for address in addresses]
    of_ipv4: list[Instruction] = [(LOAD_WORD, 0, 0, SENDER)]
    of_ipv6: list[Instruction] = []
    for network in networks:
        bits = int(network.network_address)
        if network.version == 4:
            of_ipv4 += [(JUMP_EQUAL, 0, 1, bits), DROP]
            continue
        first, second = bits >> 96, bits >> 64 & 0xFFFFFFFF
        of_ipv6 += [
            (LOAD_WORD, 0, 0, SENDER_6),
            (JUMP_EQUAL, 0, 3, first),
            (LOAD_WORD, 0, 0, SENDER_6 + 4),
            (JUMP_EQUAL, 0, 1, second),
            DROP,
        ]
    of_ipv4.append(PASS)
    return [
        (LOAD_BYTE, 0, 0, FLAGS),
        (AND, 0, 0, SYN | ACK),
        (JUMP_EQUAL, 1, 0, SYN),
        PASS,
        (LOAD_BYTE, 0, 0, IP_HEADER),
        (SHIFT_RIGHT, 0, 0, 4),
        (JUMP_EQUAL, 1, 0, 4),
        (JUMP, 0, 0, len(of_ipv4)),
        *of_ipv4,
        *of_ipv6,
        PASS,
    ]


def check_free(host: str, port: int, setting: str) -> None:
    """Raises ConfigurationError when ``listen`` would; leaves nothing open."""
    listen(host, port, setting).close()


def port_in_use(host: str, port: int, setting: str) -> ConfigurationError:
    return ConfigurationError(
        f"{address(host, port)} is in use by another program",
        where=setting,
        fix=f"stop that program, choose another {setting}, or 0 for any free port",
    )
