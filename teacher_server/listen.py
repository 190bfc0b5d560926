"""Addresses: which may be bound, how they are bound, and the errors when they cannot be."""

from __future__ import annotations

import errno
import logging
import math
import socket

from teacher_proto.channel import is_loopback
from teacher_proto.errors import ConfigurationError

log = logging.getLogger(__name__)

# Connections that wait to be accepted; the system has a lower bound of its own (somaxconn). Where
# there is no room for one, its caller tries again after a second.
BACKLOG = 4096


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


def check_free(host: str, port: int, setting: str) -> None:
    """Raises ConfigurationError when ``listen`` would; leaves nothing open."""
    listen(host, port, setting).close()


def port_in_use(host: str, port: int, setting: str) -> ConfigurationError:
    return ConfigurationError(
        f"{address(host, port)} is in use by another program",
        where=setting,
        fix=f"stop that program, choose another {setting}, or 0 for any free port",
    )
