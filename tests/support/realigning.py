"""Requests that are realigned in the process of the test."""

from __future__ import annotations

from collections.abc import Generator

from teacher_server.frames import Frame, pack, unpack
from teacher_server.realign.paired import Pair
from teacher_server.realign.requests.serve import serve


class InProcess:
    """A session whose messages are packed and unpacked, as they are between processes."""

    def __init__(self, pair: Pair) -> None:
        self._pair = pair
        self._work: Generator[Frame, Frame, None] | None = None

    def next(self, frame: Frame) -> Frame:
        """What it says after ``frame``."""
        frame = unpack(pack(frame))
        if self._work is None:
            self._work = serve(self._pair, frame)
            said = next(self._work)
        else:
            said = self._work.send(frame)
        return unpack(pack(said))

    async def ask(self, frame: Frame) -> Frame:
        return self.next(frame)

    async def reserve(self, size: int) -> None:
        """There is always room."""
