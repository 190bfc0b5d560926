"""Takes connections from a listening socket, within the table's bounds and the system's files."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import socket
import ssl
from functools import partial

from teacher_server.http.connection.connection import LINGER_SECONDS, Connection
from teacher_server.http.connection.host import Host
from teacher_server.http.connection.notices import Notice
from teacher_server.http.connection.table import Entry, Rank
from teacher_server.http.connection.transport import has_left

log = logging.getLogger(__name__)

# Connections that are taken before the loop does something else, at most, and one in so many of
# those there may be.
TURN, TURNS = 16, 10
# Of those there may be, one in so many is new at once: more are taken when the first bytes of
# these were read, if they are there.
NEW = 4
# Connections of one turn whose callers have left already, at most. Nothing else is done for them.
LEFT = 64
# Connections that are closed at once when there are no files to take them.
TURNED_AWAY = 32
OUT_OF_FILES = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}
NOTHING_WAITS = {errno.EAGAIN, errno.EWOULDBLOCK, errno.EINTR}
# Idle connections that give way at once when there are no files left.
FREED = 8
# Before accepting again, when some gave way and when none could.
SOON, LATER = 0.1, 0.5


class Acceptor:
    """Accepts until ``close``: to uvicorn, one of the servers that it closes and waits for.

    Attributes:
        failure: why it could not go on.
    """

    def __init__(self, listener: socket.socket, host: Host, context: ssl.SSLContext | None) -> None:
        """``context``: of TLS; None for plain text."""
        self._listener = listener
        self._host = host
        self._context = context
        self._turn = max(1, min(TURN, host.table.most // TURNS))
        self._loop = asyncio.get_running_loop()
        self._connections: dict[Entry, Connection] = {}
        self._opening: dict[Entry, asyncio.Task[None]] = {}
        self._new = 0
        self._most_new = max(1, host.table.most // NEW)
        self._spare = _spare()
        self._retry: asyncio.TimerHandle | None = None
        self._out_of_files = Notice(
            log, "no file was left to accept connections with, %d times: idle ones give way"
        )
        self._gave_way = Notice(
            log, "%d connections gave way to newer ones (limits.max_connections and its like)"
        )
        self.failure: Exception | None = None
        listener.setblocking(False)
        self._loop.add_reader(listener, self._accept)

    def close(self) -> None:
        """Accepts no more; what is open goes on."""
        self._loop.remove_reader(self._listener)
        if self._retry is not None:
            self._retry.cancel()
        self._listener.close()
        for task in self._opening.values():
            task.cancel()

    async def wait_closed(self) -> None:
        await asyncio.gather(*self._opening.values(), return_exceptions=True)

    def end(self) -> None:
        """Ends what is still open after ``close``."""
        for connection in list(self._connections.values()):
            connection.abort()
        self._out_of_files.close()
        self._gave_way.close()
        if self._spare is not None:
            os.close(self._spare)

    def _accept(self) -> None:
        entered, most = 0, min(self._turn, self._most_new - self._new)
        if most <= 0:
            return
        try:
            for _ in range(most + LEFT):
                connection, peer = self._listener.accept()
                if entered and has_left(connection):
                    # The first one is served: who asks one thing may have closed its side.
                    connection.close()
                    self._host.cut("left")
                    continue
                self._enter(connection, str(peer[0]))
                entered += 1
                if entered == most:
                    break
        except OSError as error:
            if error.errno in OUT_OF_FILES:
                self._make_room()
            elif error.errno not in NOTHING_WAITS:
                # The network's error of one connection, such as ECONNABORTED.
                log.debug("a connection was not accepted: %s", error.strerror)
        except Exception as error:
            self._loop.remove_reader(self._listener)
            self.failure = error

    def _enter(self, accepted: socket.socket, address: str) -> None:
        # A handshake may take its time: who has not ended it is a stranger.
        plain = self._context is None
        entry, gone = self._host.table.enter(address, Rank.NEW if plain else Rank.STRANGER)
        if gone is not None:
            self._gave_way.count()
            self._host.cut("gave_way")
            self._end(gone)
        self._connections[entry] = Connection(self._host, entry, self._leave)
        task = self._loop.create_task(self._open(accepted, self._connections[entry]))
        self._opening[entry] = task
        self._new += plain
        task.add_done_callback(partial(self._opened, entry, accepted))

    async def _open(self, accepted: socket.socket, protocol: Connection) -> None:
        """Ends when the protocol has its transport, after the TLS handshake."""
        accepted.setblocking(False)
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
        if self._context is None:
            self._loop.call_soon(self._read, entry)  # what is there is read before
        if task.cancelled() or task.exception() is not None:
            if not task.cancelled():
                self._host.cut("no_handshake")
            accepted.close()
            self._leave(entry)

    def _read(self, entry: Entry) -> None:
        """Its first bytes were read, if there were any."""
        self._new -= 1
        if entry.rank is Rank.NEW:
            self._host.table.move(entry, Rank.STRANGER)

    def _end(self, entry: Entry) -> None:
        """Ends a connection that has left the table."""
        opening = self._opening.get(entry)
        if opening is not None and not opening.done():
            opening.cancel()
        elif entry in self._connections:
            self._connections[entry].abort()

    def _leave(self, entry: Entry) -> None:
        self._host.table.leave(entry)
        self._connections.pop(entry, None)

    def _make_room(self) -> None:
        """No file is left: idle connections give way, else those that wait are turned away."""
        self._out_of_files.count()
        freed = 0
        while freed < FREED and (entry := self._host.table.idlest()) is not None:
            self._host.table.leave(entry)
            self._host.cut("out_of_files")
            self._end(entry)
            freed += 1
        if not freed:
            self._turn_away()
        self._loop.remove_reader(self._listener)
        self._retry = self._loop.call_later(SOON if freed else LATER, self._again)

    def _turn_away(self) -> None:
        """Closes what waits to be accepted, with the file that was kept for it."""
        if self._spare is None:
            return
        os.close(self._spare)
        with contextlib.suppress(OSError):
            for _ in range(TURNED_AWAY):
                self._listener.accept()[0].close()
                self._host.cut("out_of_files")
        self._spare = _spare()

    def _again(self) -> None:
        self._retry = None
        if self._spare is None:
            self._spare = _spare()
        self._loop.add_reader(self._listener, self._accept)


def _spare() -> int | None:
    with contextlib.suppress(OSError):
        return os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
    return None
