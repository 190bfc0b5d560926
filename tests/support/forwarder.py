"""A TCP port in front of a server, whose connections from single processes can be cut off."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterable

import psutil


class Forwarder:
    """A context manager: forwards every connection to ``address``.

    Attributes:
        address: ``HOST:PORT`` at which it listens.
    """

    def __init__(self, address: str) -> None:
        host, _, port = address.rpartition(":")
        self._target = host, int(port)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        # By the port that a connection comes from, both its ends; also of those that have ended.
        self._open: dict[int, tuple[socket.socket, socket.socket]] = {}
        self._cut: set[int] = set()
        self._lock = threading.Lock()
        self._ended = False

    def __enter__(self) -> Forwarder:
        self._thread = threading.Thread(target=self._accept, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._ended = True
        # Wakes the thread that accepts.
        socket.create_connection(self._listener.getsockname()).close()
        self._thread.join()
        self._listener.close()
        with self._lock:
            _close(self._open.values())

    def cut(self, pid: int) -> None:
        """Closes the connections of a process, and every one that it opens later."""
        with self._lock:
            self._cut.add(pid)
            _close([self._open.pop(port) for port in _ports(pid) & self._open.keys()])

    def _accept(self) -> None:
        while True:
            near, (_, port) = self._listener.accept()
            if self._ended:
                near.close()
                return
            with self._lock:
                if any(port in _ports(pid) for pid in self._cut):
                    near.close()
                    continue
                far = socket.create_connection(self._target)
                self._open[port] = near, far
            for source, sink in ((near, far), (far, near)):
                threading.Thread(target=_pump, args=(source, sink), daemon=True).start()


def _ports(pid: int) -> set[int]:
    """The local TCP ports of a process; none once it has ended."""
    try:
        return {one.laddr.port for one in psutil.Process(pid).net_connections("tcp") if one.laddr}
    except psutil.Error:
        return set()


def _pump(source: socket.socket, sink: socket.socket) -> None:
    try:
        while data := source.recv(1 << 16):
            sink.sendall(data)
    except OSError:
        pass  # one side is gone, and so is the other then
    for end in (source, sink):
        with contextlib.suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)


def _close(pairs: Iterable[tuple[socket.socket, socket.socket]]) -> None:
    for pair in pairs:
        for end in pair:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()
