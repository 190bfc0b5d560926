"""This process's own sockets, and whose connections they are."""

from __future__ import annotations

import contextlib
import functools
import os
import socket
from typing import NamedTuple

from teacher_server.access.peers import neighbourhood, plain, split

DESCRIPTORS = "/dev/fd"


class Peer(NamedTuple):
    """The far end of a connection, by its plain IP address."""

    host: str
    port: int

    @property
    def address(self) -> str:
        """What is counted as one: the address, or the /64 of IPv6."""
        return neighbourhood(self.host)


@functools.lru_cache(maxsize=8192)
def peer_of(name: str) -> Peer | None:
    """The peer of this name, ``ipv4:127.0.0.1:1234`` or ``ipv6:%5B::1%5D:1234``."""
    host, port = split(name)
    return Peer(host, port) if host else None


class Sockets:
    """The connections to one port. A look takes a while where there are many: it is for a
    thread, one at a time."""

    def __init__(self, port: int) -> None:
        self._port = port
        # (device, inode) and peer of each descriptor: a connection keeps its inode.
        self._known: dict[int, tuple[tuple[int, int], Peer | None]] = {}

    def look(self) -> dict[Peer, int]:
        """The descriptor of each connection; raises OSError when no file is left to look with."""
        known: dict[int, tuple[tuple[int, int], Peer | None]] = {}
        for name in os.listdir(DESCRIPTORS):
            descriptor = int(name)
            with contextlib.suppress(OSError):
                found = os.fstat(descriptor)
                inode = (found.st_dev, found.st_ino)
                before = self._known.get(descriptor)
                if before is None or before[0] != inode:
                    before = (inode, self._peer(descriptor))
                known[descriptor] = before
        self._known = known
        return {peer: number for number, (_, peer) in known.items() if peer is not None}

    def end(self, descriptor: int, peer: Peer) -> bool:
        """Ends this connection; False where the descriptor is another's by this time."""
        # A copy stays the same connection, whatever gRPC does with its own.
        with contextlib.suppress(OSError), socket.socket(fileno=os.dup(descriptor)) as copy:
            if self._far_end(copy) == peer:
                copy.shutdown(socket.SHUT_RDWR)
                return True
        return False

    def _peer(self, descriptor: int) -> Peer | None:
        try:
            found = socket.socket(fileno=descriptor)
        except OSError:
            return None
        try:
            return self._far_end(found)
        except OSError:
            return None
        finally:
            found.detach()

    def _far_end(self, found: socket.socket) -> Peer | None:
        """None for what is no connection to the port; raises OSError for what is none any
        more."""
        if found.family not in (socket.AF_INET, socket.AF_INET6):
            return None
        if found.getsockname()[1] != self._port:
            return None
        host, port = found.getpeername()[:2]
        return Peer(plain(host), port)
