"""Takes connections from a listening socket, within the table's bounds and the system's files."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import socket
import ssl

from teacher_server.http.connection.host import Host
from teacher_server.http.connection.notices import Notice
from teacher_server.http.connection.opening import Openings

log = logging.getLogger(__name__)

# Connections that are taken before the loop does something else, at most. One costs the loop
# some 40 microseconds, a tenth of what it costs to open it and to serve a small request.
TURN = 64
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
        failure: why the listener could not go on. What one connection raises ends that one.
    """

    def __init__(self, listener: socket.socket, host: Host, context: ssl.SSLContext | None) -> None:
        """``context``: of TLS; None for plain text."""
        self._listener = listener
        self._host = host
        self._loop = asyncio.get_running_loop()
        self._gave_way = Notice(
            log, "%d connections gave way to newer ones (limits.max_connections and its like)"
        )
        self._openings = Openings(host, context, self._gave_way.count, self._note)
        self._spare = _spare()
        self._retry: asyncio.TimerHandle | None = None
        self._out_of_files = Notice(
            log, "no file was left to accept connections with, %d times: idle ones give way"
        )
        self._broken = Notice(log, "%d new connections were ended by an error of the server's own")
        self._told = False
        self.failure: Exception | None = None
        listener.setblocking(False)
        self._loop.add_reader(listener, self._accept)

    def close(self) -> None:
        """Accepts no more; what is open goes on."""
        self._loop.remove_reader(self._listener)
        if self._retry is not None:
            self._retry.cancel()
        self._listener.close()
        self._openings.close()

    async def wait_closed(self) -> None:
        await self._openings.wait_closed()

    def end(self) -> None:
        """Ends what is still open after ``close``."""
        self._openings.abort()
        self._out_of_files.close()
        self._gave_way.close()
        self._broken.close()
        if self._spare is not None:
            os.close(self._spare)

    def _accept(self) -> None:
        try:
            for _ in range(TURN):
                connection, peer = self._listener.accept()
                self._openings.take(connection, str(peer[0]))
        except OSError as error:
            if error.errno in OUT_OF_FILES:
                self._make_room()
            elif error.errno not in NOTHING_WAITS:
                # The network's error of one connection, such as ECONNABORTED.
                log.debug("a connection was not accepted: %s", error.strerror)
        except Exception as error:
            self._loop.remove_reader(self._listener)
            self.failure = error

    def _note(self, error: Exception) -> None:
        """Whole the first time: a caller that could repeat it would fill the log."""
        if not self._told:
            self._told = True
            log.error("a connection ended with an error of the server's own", exc_info=error)
        self._broken.count()

    def _make_room(self) -> None:
        """No file is left: idle connections give way, else those that wait are turned away."""
        self._out_of_files.count()
        freed = 0
        while freed < FREED and (entry := self._host.table.idlest()) is not None:
            self._host.table.leave(entry)
            self._host.cut("out_of_files")
            self._openings.end(entry)
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
