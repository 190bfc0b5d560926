"""A proxy in front of a server that may end connections in the middle of a reply."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator

PIECE = 65536


class CuttingProxy:
    """``cut_after``: bytes of the answer to a POST that pass before the connection ends;
    None lets everything pass."""

    def __init__(self, target: str) -> None:
        host, _, port = target.rpartition(":")
        self._target = (host, int(port))
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self.cut_after: int | None = None
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)  # whoever waits to accept is told
        self._listener.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with (
            contextlib.suppress(OSError),  # the server is gone: so is the connection
            connection,
            socket.create_connection(self._target) as server,
        ):
            posted = threading.Event()
            back = threading.Thread(
                target=self._answer, args=(server, connection, posted), daemon=True
            )
            back.start()
            with contextlib.suppress(OSError):
                while piece := connection.recv(PIECE):
                    if piece.startswith(b"POST"):
                        posted.set()
                    server.sendall(piece)
                server.shutdown(socket.SHUT_WR)
            back.join()

    def _answer(
        self, server: socket.socket, connection: socket.socket, posted: threading.Event
    ) -> None:
        with contextlib.suppress(OSError):
            while piece := server.recv(PIECE):
                if posted.is_set() and self.cut_after is not None:
                    connection.sendall(piece[: self.cut_after])
                    break
                connection.sendall(piece)
        with contextlib.suppress(OSError):
            connection.shutdown(socket.SHUT_RDWR)


@contextlib.contextmanager
def cutting(target: str) -> Iterator[CuttingProxy]:
    proxy = CuttingProxy(target)
    try:
        yield proxy
    finally:
        proxy.close()
