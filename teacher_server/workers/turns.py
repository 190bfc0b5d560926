"""Turns to compute, shared between runs: one that asks for much leaves room for the others."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter, OrderedDict, deque
from collections.abc import AsyncIterator


class Turns:
    """At most ``total`` turns at once, and ``per_run`` of one run; runs that wait take turns."""

    def __init__(self, total: int, per_run: int) -> None:
        self._free = total
        self._per_run = per_run
        self._taken: Counter[str] = Counter()
        self._waiting: OrderedDict[str, deque[asyncio.Future[None]]] = OrderedDict()

    @contextlib.asynccontextmanager
    async def take(self, run: str) -> AsyncIterator[None]:
        """Waits for a turn and has it meanwhile."""
        if self._may(run) and run not in self._waiting:
            self._begin(run)
        else:
            turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiting.setdefault(run, deque()).append(turn)
            try:
                await turn
            except asyncio.CancelledError:
                if turn.done() and not turn.cancelled():
                    self._end(run)  # it was its turn just now
                raise
        try:
            yield
        finally:
            self._end(run)

    def _may(self, run: str) -> bool:
        return self._free > 0 and self._taken[run] < self._per_run

    def _begin(self, run: str) -> None:
        self._free -= 1
        self._taken[run] += 1

    def _end(self, run: str) -> None:
        self._free += 1
        self._taken[run] -= 1
        for other in list(self._waiting):
            queue = self._waiting[other]
            while queue and queue[0].done():  # given up
                queue.popleft()
            if queue and self._may(other):
                self._begin(other)
                queue.popleft().set_result(None)
                self._waiting.move_to_end(other)
            if not queue:
                del self._waiting[other]
        self._taken += Counter()  # forgets runs that have none
