"""Places for what callers without credentials may leave unfinished: few, and fewer by address."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable
from typing import Any

# Seconds within which something is done at once.
AT_ONCE = 0.05


class Full(TimeoutError):
    """There was no place to wait in."""


class Places:
    """How many there may be of something: ``most`` in all, ``by_owner`` of one owner."""

    def __init__(self, most: float, by_owner: int) -> None:
        self._most = most
        self._by_owner = by_owner
        self._all = 0
        self._taken: Counter[str] = Counter()

    def take(self, owner: str) -> bool:
        """False when there is none left."""
        if self._taken[owner] >= self._by_owner or self._all >= self._most:
            return False
        self._taken[owner] += 1
        self._all += 1
        return True

    def leave(self, owner: str) -> None:
        self._all -= 1
        self._taken[owner] -= 1
        if not self._taken[owner]:
            del self._taken[owner]

    async def finish(self, work: Awaitable[Any], owner: str, seconds: float) -> Any:
        """What ``work`` returns; it takes a place when that is not there at once.

        Raises:
            Full: it was not done at once, and there is no place.
            TimeoutError: it was not done after ``seconds`` in one.
        """
        task = asyncio.ensure_future(work)
        try:
            await asyncio.wait((task,), timeout=AT_ONCE)
            if not task.done():
                if not self.take(owner):
                    raise Full
                try:
                    await asyncio.wait((task,), timeout=seconds)
                finally:
                    self.leave(owner)
            if not task.done():
                raise TimeoutError
            return task.result()
        finally:
            task.cancel()
