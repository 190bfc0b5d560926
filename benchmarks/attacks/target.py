"""What every attack is told: whom it attacks, with which credentials, and how it counts."""

from __future__ import annotations

import asyncio
import socket
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path

MIB = 1024 * 1024
TOKENS = {run: f"{run}-token-0123456789abcdef0123456789" for run in ("alice", "mallory", "watcher")}


def bearer(run: str) -> str:
    return f"Bearer {TOKENS[run]}"


def write_runs(path: Path) -> Path:
    """Credentials: ``alice`` is the neighbour, ``mallory`` attacks, ``watcher`` may ask nobody."""
    path.touch(0o600)
    parts = [
        f"[runs.{run}]\n{'teachers = []' if run == 'watcher' else ''}\n"
        f'[[runs.{run}.tokens]]\ntoken = "{token}"\n'
        for run, token in TOKENS.items()
    ]
    path.write_text("".join(parts))
    return path


@dataclass
class Target:
    """A server under attack.

    Attributes:
        tokenizer: the hash of its teacher's tokenizer.
        begin: to be awaited once everything is prepared; the attack lasts from then on.
        until: when the attack ends, seconds of the monotonic clock.
        ended: how requests and connections ended, with their number.
        admitted: bytes of bodies and replies that the attack has in flight at most, which
            a server may hold for it.
    """

    grpc_address: str
    http_address: str
    tokenizer: str
    begin: Callable[[], Awaitable[None]]
    until: float = 0.0
    ended: Counter[str] = field(default_factory=Counter)
    admitted: int = 0

    @property
    def lasts(self) -> bool:
        return time.monotonic() < self.until

    def connect(self, wire: str, receive_buffer: int = 0, source: str = "") -> socket.socket:
        """A plain blocking socket to one of the ports, with a time-out of a second.

        ``source``: the address it comes from, where not from the neighbour's own.
        """
        host, _, port = (self.http_address if wire == "http" else self.grpc_address).rpartition(":")
        made = socket.socket()
        if receive_buffer:
            made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        made.settimeout(1.0)
        if source:
            made.bind((source, 0))
        made.connect((host, int(port)))
        return made

    async def repeat(self, count: int, once: Callable[[], Awaitable[str]]) -> None:
        """``count`` tasks that do it again and again until the attack ends."""

        async def keep_on() -> None:
            while self.lasts:
                self.ended[await once()] += 1

        await asyncio.gather(*(keep_on() for _ in range(count)))

    async def on_sockets(self, count: int, once: Callable[[], str]) -> None:
        """As ``repeat``, each in a thread, with a failure of a socket as its end."""

        def attempt() -> str:
            try:
                return once()
            except OSError as error:
                time.sleep(0.05)  # an attacker whose connection is ended takes a breath
                return type(error).__name__

        await self.repeat(count, lambda: asyncio.to_thread(attempt))
