"""This process's own sockets, and whose connections they are."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import socket
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from teacher_server.access.peers import has_left, neighbourhood, plain, split

DESCRIPTORS = "/dev/fd"
INTERNET = (socket.AF_INET, socket.AF_INET6)
# An address of no family (AF_UNSPEC), as connect(2) takes it; it takes a connection apart.
NOWHERE = bytes(16)


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
        # Those that were ended here, until gRPC has closed its descriptor.
        self._over: set[tuple[tuple[int, int], Peer | None]] = set()

    def look(self) -> dict[Peer, int]:
        """The descriptor of each connection but those that were ended here; raises OSError when
        no file is left to look with."""
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
        self._over.intersection_update(known.values())
        return {
            one[1]: number
            for number, one in known.items()
            if one[1] is not None and one not in self._over
        }

    def listeners(self) -> Iterator[socket.socket]:
        """Those that accept connections to the port, each while it is looked at; raises OSError
        when no file is left to look with."""
        for descriptor in map(int, os.listdir(DESCRIPTORS)):
            with contextlib.suppress(OSError), _borrowed(descriptor) as found:
                listens = found.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
                if listens and found.family in INTERNET and found.getsockname()[1] == self._port:
                    yield found

    def left(self, peers: Mapping[Peer, int]) -> set[Peer]:
        """Those of a look whose far end is closed."""
        gone: set[Peer] = set()
        for peer, descriptor in peers.items():
            with contextlib.suppress(OSError), _borrowed(descriptor) as found:
                if has_left(found):
                    gone.add(peer)
        return gone

    def end(self, descriptor: int, peer: Peer, *, unread: bool = False) -> bool:
        """Ends this connection; False where the descriptor is another's by this time.

        ``unread``: at once, with what has arrived of it and what it was sent and has not taken.
        Else, and where the system does not know how, gRPC reads first what is there, however
        much it costs.
        """
        # A copy stays the same connection, whatever gRPC does with its own.
        with contextlib.suppress(OSError), _copied(descriptor) as copy:
            if self._far_end(copy) == peer:
                found = os.fstat(copy.fileno())
                self._over.add(((found.st_dev, found.st_ino), peer))
                if not (unread and _take_apart(copy.fileno())):
                    copy.shutdown(socket.SHUT_RDWR)
                return True
        return False

    def _peer(self, descriptor: int) -> Peer | None:
        with contextlib.suppress(OSError), _borrowed(descriptor) as found:
            return self._far_end(found)
        return None

    def _far_end(self, found: socket.socket) -> Peer | None:
        """None for what is no connection to the port; raises OSError for what is none any
        more."""
        if found.family not in INTERNET:
            return None
        if found.getsockname()[1] != self._port:
            return None
        host, port = found.getpeername()[:2]
        return Peer(plain(host), port)


@contextlib.contextmanager
def _borrowed(descriptor: int) -> Iterator[socket.socket]:
    """The socket of a descriptor that stays open; raises OSError where it is none."""
    found = socket.socket(fileno=descriptor)
    try:
        yield found
    finally:
        found.detach()


@contextlib.contextmanager
def _copied(descriptor: int) -> Iterator[socket.socket]:
    """A copy of a descriptor's socket, which is closed at the end; raises OSError where it is
    none."""
    copy = os.dup(descriptor)
    try:
        with _borrowed(copy) as found:
            yield found
    finally:
        os.close(copy)


def _take_apart(descriptor: int) -> bool:
    """Resets a connection, whoever else has its descriptor; False where the system refuses it."""
    return ctypes.CDLL(None).connect(descriptor, NOWHERE, len(NOWHERE)) == 0  # type: ignore[no-any-return]
