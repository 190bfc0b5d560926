"""Listening sockets: what comes to them and goes again, and what the system does with it."""

from __future__ import annotations

import contextlib
import socket
import sys
from collections.abc import Iterator

SECONDS = 60.0
SYN_SENT, ESTABLISHED = 2, 1
# Seconds after which a caller's system asks again whose connection was not answered.
SYN_AGAIN = 1.0


@contextlib.contextmanager
def accepted_by(
    listener: socket.socket, data: bytes = b"", source: str = ""
) -> Iterator[socket.socket]:
    """What the server has of a connection whose caller has sent ``data`` and left."""
    where = (source, 0) if source else None
    with socket.create_connection(listener.getsockname(), source_address=where) as caller:
        caller.sendall(data)
    accepted, _ = listener.accept()
    with accepted:
        accepted.settimeout(SECONDS)
        yield accepted


def may_wait(listener: socket.socket) -> int:
    """Connections that may wait to be accepted: of Linux, what tcpi_sacked is of a listener."""
    found: bytes = listener.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 32)
    return int.from_bytes(found[28:32], sys.byteorder)


def begun(listener: socket.socket, source: str) -> int:
    """The state of a new connection from ``source``: on loopback it is settled at once."""
    with socket.socket(listener.family) as caller:
        caller.bind((source, 0))
        caller.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            caller.connect(listener.getsockname()[:2])
        state: bytes = caller.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)
    return state[0]
