"""The connections of gRPC's port, as the system shows them.

gRPC's core bounds their number, and ends those that speak no HTTP/2 within
limits.header_seconds and those that are idle for minutes. It neither counts them by address
nor keeps room for a new caller while idle ones fill the bound, nor lets go of a reply that
its caller does not take. Here the process looks at its own sockets and ends such ones.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

from teacher_server.access.descriptors import ConnectionBounds
from teacher_server.access.peers import neighbourhood, plain, split

log = logging.getLogger(__name__)

DESCRIPTORS = "/dev/fd"
# Seconds between two looks at how many connections there are.
LOOK_EVERY = 0.25
# Seconds between two lines of the log.
REPORT_EVERY = 60.0


class Peer(NamedTuple):
    """The far end of a connection, by its plain IP address."""

    host: str
    port: int

    @property
    def address(self) -> str:
        """What is counted as one: the address, or the /64 of IPv6."""
        return neighbourhood(self.host)


@dataclass
class _Seen:
    """When a connection was first seen or seen calling, and whether it ever called."""

    since: float
    called: bool = False
    calling: bool = False


class Connections:
    """Which connections there are, and which of them are ended.

    Beyond a bound those go that never made a call of the service, the oldest first, so
    that a new one has its time; then, by address, those without a call in progress. One
    that made a call stays however many others come.

    Attributes:
        calls: of the service that are in progress, by gRPC's name of the peer. Who counts
            one down leaves it there with 0.
    """

    def __init__(self, bounds: ConnectionBounds, counted: Callable[[str], None]) -> None:
        """``counted`` is given the reason for which a connection is ended."""
        self.calls: Counter[str] = Counter()
        self._bounds = bounds
        self._counted = counted
        # Room that is kept for those who come next.
        self._most = bounds.total - max(1, bounds.total // 8)
        self._seen: dict[Peer, _Seen] = {}
        self._port = -1
        self._ended = 0
        self._reported = -REPORT_EVERY

    def __len__(self) -> int:
        """How many there are at present."""
        return len(self._peers())

    def cut(self, name: str, reason: str) -> None:
        """Ends the connection of this peer of gRPC's, and every call over it."""
        peer = peer_of(name)
        if peer is not None:
            self._end({peer}, reason)

    def end_silent(self) -> None:
        """Ends those that never made a call, so that nothing waits for them at the end."""
        peers = set(self._peers())
        self._note(peers)
        self._end({peer for peer in peers if not self._seen[peer].called}, "silent")

    async def watch(self, port: int) -> None:
        """Ends what is beyond the bounds, for ever."""
        self._port = port
        least = min(self._most, self._bounds.per_address)
        while True:
            await asyncio.sleep(LOOK_EVERY)
            if len(os.listdir(DESCRIPTORS)) > least or len(self.calls) > self._bounds.total:
                peers = await asyncio.to_thread(self._peers)
                self._end(self._beyond(set(peers)), "gave_way")
            self._report()

    def _beyond(self, peers: set[Peer]) -> set[Peer]:
        """Those of the connections that have to go."""
        self._note(peers)
        by_address: dict[str, list[Peer]] = {}
        for peer in peers:
            by_address.setdefault(peer.address, []).append(peer)
        ended: set[Peer] = set()
        for found in by_address.values():
            idle = [peer for peer in self._ranked(found) if not self._seen[peer].calling]
            ended.update(idle[: max(0, len(found) - self._bounds.per_address)])
        silent = [peer for peer in self._ranked(peers - ended) if not self._seen[peer].called]
        ended.update(silent[: max(0, len(peers) - len(ended) - self._most)])
        return ended

    def _note(self, peers: set[Peer]) -> None:
        """Keeps what is known of these connections, and of no others."""
        now = time.monotonic()
        self._seen = {peer: self._seen.get(peer) or _Seen(now) for peer in peers}
        for seen in self._seen.values():
            seen.calling = False
        for name, calls in list(self.calls.items()):
            peer = peer_of(name)
            if peer in self._seen:
                self._seen[peer] = _Seen(now, called=True, calling=calls > 0)
            elif not calls:
                del self.calls[name]

    def _ranked(self, peers: set[Peer] | list[Peer]) -> list[Peer]:
        """Those that go first come first."""
        return sorted(peers, key=lambda peer: (self._seen[peer].called, self._seen[peer].since))

    def _peers(self) -> list[Peer]:
        return [peer for _, peer in self._sockets()]

    def _sockets(self) -> Iterator[tuple[int, Peer]]:
        """(descriptor, its peer) of every connection to the port."""
        for name in os.listdir(DESCRIPTORS):
            peer = self._peer(int(name))
            if peer is not None:
                yield int(name), peer

    def _peer(self, descriptor: int) -> Peer | None:
        """None for what is no connection to the port, or is none any more."""
        try:
            found = socket.socket(fileno=descriptor)
        except OSError:
            return None
        try:
            if found.family not in (socket.AF_INET, socket.AF_INET6):
                return None
            if found.getsockname()[1] != self._port:
                return None
            host, port = found.getpeername()[:2]
            return Peer(plain(host), port)
        except OSError:
            return None
        finally:
            found.detach()

    def _end(self, peers: set[Peer], reason: str) -> None:
        if not peers:
            return
        for descriptor, peer in self._sockets():
            if peer not in peers:
                continue
            # A copy stays the same connection, whatever gRPC does with its own.
            with contextlib.suppress(OSError), socket.socket(fileno=os.dup(descriptor)) as copy:
                host, port = copy.getpeername()[:2]
                if Peer(plain(host), port) == peer:
                    copy.shutdown(socket.SHUT_RDWR)
                    self._ended += 1
                    self._counted(reason)

    def _report(self) -> None:
        now = time.monotonic()
        if self._ended and now - self._reported >= REPORT_EVERY:
            log.warning(
                "ended %d gRPC connections that were beyond limits.max_connections, or did "
                "not read their replies",
                self._ended,
            )
            self._ended, self._reported = 0, now


def peer_of(name: str) -> Peer | None:
    """The peer that gRPC names ``ipv4:127.0.0.1:1234`` or ``ipv6:%5B::1%5D:1234``."""
    host, port = split(name)
    return Peer(host, port) if host else None
