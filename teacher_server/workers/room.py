"""Room for so many bytes at once, given to runs in turn."""

from __future__ import annotations

import asyncio
import contextlib
from collections import OrderedDict, deque
from collections.abc import AsyncIterator


class Room:
    """``total`` bytes; who asks for more gets all of it, alone. Runs that wait take turns, and
    what comes first within a run goes first."""

    def __init__(self, total: int) -> None:
        self._total = self._free = total
        self._waiting: OrderedDict[str, deque[tuple[int, asyncio.Future[None]]]] = OrderedDict()

    @contextlib.asynccontextmanager
    async def hold(self, size: int, run: str = "") -> AsyncIterator[None]:
        """Waits for ``size`` bytes and holds them meanwhile."""
        size = min(size, self._total)
        if self._waiting or size > self._free:
            turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiting.setdefault(run, deque()).append((size, turn))
            try:
                await turn
            except asyncio.CancelledError:
                if turn.done() and not turn.cancelled():
                    self._give(size)  # it was its turn just now
                else:
                    self._give(0)
                raise
        else:
            self._free -= size
        try:
            yield
        finally:
            self._give(size)

    def _give(self, size: int) -> None:
        """Gives room back, and on to those whose turn it is: the next one is waited for, so
        that large ones get theirs."""
        self._free += size
        while self._waiting:
            run, queue = next(iter(self._waiting.items()))
            while queue and queue[0][1].done():  # given up
                queue.popleft()
            if queue:
                wanted, turn = queue[0]
                if wanted > self._free:
                    return
                self._free -= wanted
                queue.popleft()
                turn.set_result(None)
                self._waiting.move_to_end(run)
            if not queue:
                del self._waiting[run]
