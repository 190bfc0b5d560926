"""The connections of gRPC's port, as the system shows them.

gRPC's core bounds their number, and ends those that speak no HTTP/2 within
limits.header_seconds and those that are idle for minutes. It neither counts them by address
nor keeps room for a new caller while idle ones fill the bound, nor lets go of a reply that
its caller does not take; and it reads all that a caller sent who has gone meanwhile. Here a
thread looks at the process's own sockets and ends such ones, however busy the event loop is.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping

from teacher_server.access.descriptors import ConnectionBounds
from teacher_server.grpc.giving_way import MANY, Arrivals, Floods, Seen, beyond, uncalled
from teacher_server.grpc.sockets import Peer, Sockets, peer_of
from teacher_server.listen import BACKLOG, keep_silent_ones_out, turn_away

log = logging.getLogger(__name__)

# Seconds between two looks at which connections there are, and while many come and go; then
# looks take one part in SHARE of a processor, however many there are.
LOOK_EVERY, LOOK_OFTEN = 0.25, 0.02
SHARE = 10
# In a flood of addresses that are not turned away few may wait to be accepted.
WAITING_IN_FLOOD = 32
# Seconds between two lines of the log.
REPORT_EVERY = 60.0


class Connections:
    """Which connections there are, and which of them are ended.

    Those go that are beyond the bounds (``giving_way``). While many come and go, those whose
    callers have left go with what they sent, before gRPC has read it, and addresses of which
    many are over without a reply are turned away, and what they have open without a call ends.

    Attributes:
        calls: of the service that are in progress, by gRPC's name of the peer; the event
            loop's. Who counts one down leaves it there with 0.
        answered: gRPC's names of the peers that were sent a reply of the service. Who sends one
            adds it first: its caller may leave as soon as it has it.
        asked: gRPC's names of the peers that made a call of health.
    """

    def __init__(self, bounds: ConnectionBounds, counted: Callable[[str], None]) -> None:
        """``counted`` is given the reason for which a connection is ended."""
        self.calls: Counter[str] = Counter()
        self.answered: set[str] = set()
        self.asked: set[str] = set()
        self._bounds = bounds
        self._counted = counted
        # Room that is kept for those who come next.
        self._room = max(1, bounds.total // 8)
        self._seen: dict[Peer, Seen] = {}
        self._cut: dict[Peer, str] = {}
        self._sockets = Sockets(-1)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._stopped = threading.Event()
        self._floods, self._arrivals = Floods(), Arrivals(bounds.total)
        # Whom the listeners turn away, where that is certain, and whether the system can.
        self._away: frozenset[str] = frozenset()
        self._certain = self._able = True
        self._waiting = BACKLOG
        self._ended = 0
        self._reported = self._failed = self._told = -REPORT_EVERY

    def __len__(self) -> int:
        """How many there were at the last look."""
        return len(self._seen)

    def cut(self, name: str, reason: str) -> None:
        """Ends the connection of this peer of gRPC's, and every call over it, at the next
        look."""
        peer = peer_of(name)
        if peer is not None:
            self._cut[peer] = reason

    def watch(self, port: int, silent_seconds: float) -> None:
        """Ends what is cut or beyond the bounds, until ``stop``.

        Args:
            silent_seconds: for which the system keeps back a connection that has sent nothing.
        """
        self._loop, self._sockets = asyncio.get_running_loop(), Sockets(port)
        for listener in self._sockets.listeners():
            keep_silent_ones_out(listener, silent_seconds)
        self._thread = threading.Thread(target=self._watch, name="grpc-connections", daemon=True)
        self._thread.start()

    async def stop(self) -> None:
        """Watches no more, and ends those that never made a call, so that nothing waits for
        them at the end."""
        self._stopped.set()
        if self._thread is not None:
            await asyncio.to_thread(self._thread.join)
            with contextlib.suppress(OSError):
                await asyncio.to_thread(self._end_silent)

    def _watch(self) -> None:
        pause = LOOK_EVERY
        while not self._stopped.wait(pause):
            begun, worked = time.monotonic(), time.thread_time()
            try:
                many = self._tend()
            except OSError as error:
                log.debug("gRPC's connections cannot be looked at: %s", error.strerror)
                many = False
            except Exception:
                # Without this thread nothing would bound them any more.
                if begun - self._failed >= REPORT_EVERY:
                    log.exception("a look at gRPC's connections failed")
                    self._failed = begun
                many = False
            took = time.thread_time() - worked  # while it waits for its turn, others work
            pause = min(LOOK_EVERY, max(LOOK_OFTEN, (SHARE - 1) * took)) if many else LOOK_EVERY

    def _tend(self) -> bool:
        """Whether many have come or gone since the last time, or may soon; raises OSError when
        no file is left to look with."""
        # Those that come meanwhile may not be in the look.
        answered, asked = self.answered.copy(), self.asked.copy()
        peers, before = self._sockets.look(), self._seen
        ended = {name for name in answered if peer_of(name) not in peers}
        self.answered.difference_update(ended)
        self.asked.difference_update([name for name in asked if peer_of(name) not in peers])
        served = {peer_of(name) for name in self.answered.copy()}
        calls_over = self._note(peers)
        if calls_over and self._loop is not None:
            with contextlib.suppress(RuntimeError):  # the loop is closed
                self._loop.call_soon_threadsafe(self._forget, calls_over)
        came, over = peers.keys() - before.keys(), before.keys() - peers.keys()
        many = len(came) + len(over) >= MANY
        left = self._sockets.left(peers) if many else set()
        # One that gRPC closes itself meanwhile is over at the next look, and counts there.
        gone = {peer for peer in left if self._sockets.end(peers[peer], peer, unread=True)}
        for peer in gone:
            self._counted("left")
            del self._seen[peer]
        while self._cut:
            peer, reason = self._cut.popitem()
            self._end(peers, [peer], reason)
        silent = {peer for peer, seen in self._seen.items() if not seen.called}
        gave_way = self._end(peers, self._beyond(), "gave_way") & silent
        arrived = Counter(peer.address for peer in came)
        unserved = (over | gone | gave_way) - served - {peer_of(name) for name in ended}
        self._turn_away(
            Counter(peer.address for peer in unserved),
            arrived,
            {peer.address for peer in served - left if peer is not None},
        )
        if self._away:
            self._end(peers, self._uncalled(), "gave_way")
        self._hold_back(arrived)
        self._report()
        return many or self._waiting < BACKLOG or self._floods.expected(time.monotonic())

    def _turn_away(
        self, over: Mapping[str, int], came: Mapping[str, int], staying: Collection[str]
    ) -> None:
        """Those who flood are kept out by the system, where it can; arguments as those of
        ``Floods.note``."""
        now = time.monotonic()
        away = self._floods.note(over, came, staying, now)
        if away == self._away and self._certain:
            return
        self._certain = False  # a look for the listeners may fail
        done = self._all_turn_away(away)
        if away - self._away and now - self._told >= REPORT_EVERY:
            log.warning(
                "new gRPC connections of %s come and go without end: %s",
                ", ".join(sorted(away)),
                "they are turned away for a while" if done else "they cannot be turned away",
            )
            self._told = now
        if away:
            self._able = done
        self._certain = done or self._all_turn_away(())
        self._away = away if done else frozenset()

    def _all_turn_away(self, addresses: Collection[str]) -> bool:
        """Whether every listener does so now."""
        done = [turn_away(listener, addresses) for listener in self._sockets.listeners()]
        return all(done)

    def _hold_back(self, came: Mapping[str, int]) -> None:
        """In a flood, new connections wait with their callers' systems, not here.

        gRPC takes every one that waits and refuses those beyond its bound; that alone keeps its
        threads from the connections that are there, for as long as the flood lasts.
        """
        known = self._floods.known if self._able else ()
        flood = self._arrivals.flood(came, known, time.monotonic())
        waiting = WAITING_IN_FLOOD if flood else BACKLOG
        if waiting != self._waiting:
            for listener in self._sockets.listeners():
                listener.listen(waiting)
            self._waiting = waiting

    def _end_silent(self) -> None:
        peers = self._sockets.look()
        self._note(peers)
        self._end(peers, (peer for peer in peers if not self._seen[peer].called), "silent")

    def _note(self, peers: Iterable[Peer]) -> list[str]:
        """Keeps what is known of these connections, and of no others; returns the names of
        those whose calls are over."""
        now = time.monotonic()
        self._seen = {peer: self._seen.get(peer) or Seen(peer.address, since=now) for peer in peers}
        for seen in self._seen.values():
            seen.calling = False
        found = dict.copy(self.calls)  # in one piece, whatever the loop does meanwhile
        for name, calls in found.items():
            peer = peer_of(name)
            if peer in self._seen:
                seen = self._seen[peer]
                seen.since, seen.called, seen.calling = now, True, calls > 0
        return [name for name, calls in found.items() if not calls]

    def _forget(self, over: Iterable[str]) -> None:
        """These have no call in progress, unless they began one meanwhile."""
        for name in over:
            if not self.calls[name]:
                del self.calls[name]

    def _beyond(self) -> set[Peer]:
        """Those of the connections that have to go."""
        return beyond(self._seen, self._bounds, self._room, time.monotonic() - LOOK_EVERY)

    def _uncalled(self) -> set[Peer]:
        """Those of the addresses that are turned away over which no call was made until now."""
        names = (*dict.copy(self.calls), *self.asked.copy())
        called = {peer for name in names if (peer := peer_of(name)) is not None}
        return uncalled(self._seen, called, self._away, self._room, time.monotonic())

    def _end(self, peers: Mapping[Peer, int], ended: Iterable[Peer], reason: str) -> set[Peer]:
        """Those of them that were there to be ended."""
        done: set[Peer] = set()
        for peer in ended:
            # One that never called has nothing that it waits for.
            unread = peer in self._seen and not self._seen[peer].called
            if peer in peers and self._sockets.end(peers[peer], peer, unread=unread):
                self._ended += 1
                self._counted(reason)
                self._seen.pop(peer, None)
                done.add(peer)
        return done

    def _report(self) -> None:
        now = time.monotonic()
        if self._ended and now - self._reported >= REPORT_EVERY:
            log.warning(
                "ended %d gRPC connections that were beyond limits.max_connections, or did "
                "not read their replies",
                self._ended,
            )
            self._ended, self._reported = 0, now
