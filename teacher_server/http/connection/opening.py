"""Opens connections in turns: a socket that was taken costs little until it is its turn."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from teacher_server.access.peers import has_left
from teacher_server.http.connection.connection import LINGER_SECONDS, Connection
from teacher_server.http.connection.host import Host
from teacher_server.http.connection.table import Entry, Rank
from teacher_server.http.connection.transport import look
from teacher_server.http.connection.waiting import Waiting

# Connections of one turn whose callers have left meanwhile, at most: nothing is done for them.
LEFT = 64


@dataclass
class _Taken:
    """A socket that is not opened yet; ``until``: when it has to have asked for something,
    seconds of the loop's clock."""

    accepted: socket.socket
    until: float


class Openings:
    """Connections from the moment in which they are taken to their end.

    One that has sent nothing is a socket and no more. Those that have wait for their turn
    (``Waiting``), and opening them takes a part of the loop's time (``Host.opening``).
    """

    def __init__(
        self,
        host: Host,
        context: ssl.SSLContext | None,
        gave_way: Callable[[], None],
        broken: Callable[[Exception], None],
    ) -> None:
        """``context``: of TLS; None for plain text. ``gave_way`` is told of each that had to,
        ``broken`` of what one of them raised, which is of no concern to the others."""
        self._host = host
        self._context = context
        self._gave_way = gave_way
        self._broken = broken
        self._loop = asyncio.get_running_loop()
        health = [f"{verb} {path}" for verb in ("GET", "HEAD") for path in sorted(host.public)]
        ends = " ", "?"
        self._health = tuple(f"{ask}{end}".encode() for ask in health for end in ends)
        self._waiting = Waiting()
        self._taken: dict[Entry, _Taken] = {}
        self._silent: dict[Entry, None] = {}  # of these, in the order in which they came
        self._timer: asyncio.TimerHandle | None = None
        self._in_line = False
        self._opening: dict[Entry, asyncio.Task[None]] = {}
        self._connections: dict[Entry, Connection] = {}

    def __len__(self) -> int:
        """How many wait for their turn."""
        return len(self._waiting)

    def take(self, accepted: socket.socket, address: str) -> None:
        try:
            self._take(accepted, address)
        except Exception as error:
            accepted.close()
            self._broken(error)

    def _take(self, accepted: socket.socket, address: str) -> None:
        if self._waiting and has_left(accepted):
            # A caller that is alone is served: who asks one thing may have closed its side.
            accepted.close()
            self._host.cut("left")
            return
        accepted.setblocking(False)
        asked = look(accepted)
        if asked == b"":
            accepted.close()
            return
        # Who has sent something since the loop last looked is silent no more.
        while self._silent:
            next_one = self._host.table.next_to_go(address)
            if next_one is None or next_one not in self._silent:
                break
            if look(self._taken[next_one].accepted) is None:
                break
            self._speaks(next_one)
        entry, gone = self._enter(address, asked)
        if gone is not None:
            self._gave_way()
            self._host.cut("gave_way")
            self.end(gone)
        self._taken[entry] = _Taken(accepted, self._loop.time() + self._host.limits.header_seconds)
        if asked is not None:
            self._wait(entry)
            return
        self._silent[entry] = None
        try:
            self._loop.add_reader(accepted, self._speaks, entry)
        except Exception:  # the system keeps no more watches
            self._drop(entry)
            raise
        if self._timer is None:
            self._expect()

    def end(self, entry: Entry) -> None:
        """Ends a connection that has left the table."""
        try:
            self._end(entry)
        except Exception as error:
            self._broken(error)

    def _end(self, entry: Entry) -> None:
        if entry in self._taken:
            self._drop(entry)
            return
        opening = self._opening.get(entry)
        if opening is not None and not opening.done():
            opening.cancel()
        elif entry in self._connections and not (opening is not None and _failed(opening)):
            self._connections[entry].abort()

    def close(self) -> None:
        """Opens no more; what is open goes on."""
        for entry in list(self._taken):
            self._drop(entry)
        if self._timer is not None:
            self._timer.cancel()
        for task in self._opening.values():
            task.cancel()

    async def wait_closed(self) -> None:
        await asyncio.gather(*self._opening.values(), return_exceptions=True)

    def abort(self) -> None:
        """Ends what is still open after ``close``."""
        for connection in list(self._connections.values()):
            connection.abort()

    def _speaks(self, entry: Entry) -> None:
        """One that was silent has sent something, or has left."""
        asked = look(self._taken[entry].accepted)
        if asked == b"":
            self._drop(entry)
        elif asked is not None:
            self._listen_no_more(entry)
            entry.asks_health = self._is_of_health(asked)
            self._host.table.move(entry, Rank.NEW)
            self._wait(entry)

    def _enter(self, address: str, asked: bytes | None) -> tuple[Entry, Entry | None]:
        if asked is None:
            return self._host.table.enter(address, Rank.STRANGER)
        asks_health = self._is_of_health(asked)
        return self._host.table.enter(address, Rank.NEW, asks_health=asks_health)

    def _is_of_health(self, asked: bytes) -> bool:
        """False where it cannot be seen: with TLS, or while the path is not all there."""
        return self._context is None and asked.startswith(self._health)

    def _wait(self, entry: Entry) -> None:
        self._waiting.add(entry)
        if not self._in_line:
            self._in_line = True
            self._host.opening.add(self._take_turn)

    def _take_turn(self) -> None:
        self._in_line = False
        try:
            self._open_next()
        finally:
            if self._waiting:
                self._in_line = True
                self._host.opening.add(self._take_turn)

    def _open_next(self) -> None:
        for _ in range(LEFT):
            entry = self._waiting.take()
            if entry is None:
                return
            if not self._waiting or not has_left(self._taken[entry].accepted):
                self._open(entry)
                return
            self._host.cut("left")
            self._drop(entry)

    def _open(self, entry: Entry) -> None:
        accepted = self._taken.pop(entry).accepted
        if self._context is not None:
            # A handshake may take its time: who has not ended it is a stranger.
            self._host.table.move(entry, Rank.STRANGER)
        self._connections[entry] = Connection(self._host, entry, self._leave)
        task = self._loop.create_task(self._connect(accepted, self._connections[entry]))
        self._opening[entry] = task
        task.add_done_callback(partial(self._opened, entry, accepted))

    async def _connect(self, accepted: socket.socket, protocol: Connection) -> None:
        """Ends when the protocol has its transport, after the TLS handshake."""
        tls = self._context is not None
        await self._loop.connect_accepted_socket(
            lambda: protocol,
            accepted,
            ssl=self._context,
            ssl_handshake_timeout=self._host.limits.header_seconds if tls else None,
            ssl_shutdown_timeout=LINGER_SECONDS if tls else None,
        )

    def _opened(self, entry: Entry, accepted: socket.socket, task: asyncio.Task[None]) -> None:
        del self._opening[entry]
        self._loop.call_soon(self._read, entry)  # what is there is read before
        if _failed(task):
            if not task.cancelled():
                self._host.cut("no_handshake")
            accepted.close()
            self._leave(entry)

    def _read(self, entry: Entry) -> None:
        """Its first bytes were read."""
        if entry.rank is Rank.NEW:
            self._host.table.move(entry, Rank.STRANGER)

    def _leave(self, entry: Entry) -> None:
        self._host.table.leave(entry)
        self._connections.pop(entry, None)

    def _drop(self, entry: Entry) -> None:
        """Closes one that is not open."""
        self._host.table.leave(entry)
        self._waiting.discard(entry)
        self._listen_no_more(entry)
        self._taken.pop(entry).accepted.close()

    def _listen_no_more(self, entry: Entry) -> None:
        if entry in self._silent:
            del self._silent[entry]
            self._loop.remove_reader(self._taken[entry].accepted)

    def _expect(self) -> None:
        """Ends those that were silent for too long, and waits for the next to be so."""
        self._timer = None
        while (entry := next(iter(self._silent), None)) is not None:
            if self._taken[entry].until > self._loop.time():
                self._timer = self._loop.call_at(self._taken[entry].until, self._expect)
                return
            self._host.cut("silent")
            self._drop(entry)


def _failed(opening: asyncio.Task[None]) -> bool:
    """Whether one that is done has no connection; ``_opened`` ends what there is of it."""
    return opening.cancelled() or opening.exception() is not None
