"""Work that takes a part of the event loop's time, however much of it there is."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import Callable, Iterator

# Of the loop's time, one part in SHARE. A loop that is never idle takes the interpreter from
# every other thread: an engine's forward waits for it some hundred times.
SHARE = 4
# Processor seconds of work before the loop is left to others for a while.
AT_ONCE = 0.001
# Seconds of one pause at most. What was spent beyond that is not made up for: who waits now may
# have spent nothing of it.
LONGEST = 0.25


class Turns:
    """First come, first served, one piece in each of the loop's turns.

    Args:
        clock: processor seconds of this thread.
    """

    def __init__(self, clock: Callable[[], float] = time.thread_time) -> None:
        self._waiting: deque[Callable[[], None]] = deque()
        self._clock = clock
        self._spent = 0.0
        self._running = False

    def add(self, piece: Callable[[], None]) -> None:
        self._waiting.append(piece)
        if not self._running:
            self._running = True
            asyncio.get_running_loop().call_soon(self._next)

    @contextlib.contextmanager
    def charged(self) -> Iterator[None]:
        """What is done within is a part of this work, beside the pieces."""
        begun = self._clock()
        try:
            yield
        finally:
            self._spent += self._clock() - begun

    def _next(self) -> None:
        try:
            with self.charged():
                self._waiting.popleft()()
        finally:
            pause = 0.0
            if self._spent >= AT_ONCE:
                pause, self._spent = min(LONGEST, (SHARE - 1) * self._spent), 0.0
            loop = asyncio.get_running_loop()
            if pause:  # also where nobody waits: who comes next meanwhile is later by it
                loop.call_later(pause, self._go_on)
            else:
                loop.call_soon(self._go_on)

    def _go_on(self) -> None:
        if self._waiting:
            self._next()
        else:
            self._running = False
