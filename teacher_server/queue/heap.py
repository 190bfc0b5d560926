"""A heap whose items can be moved and dropped."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Hashable
from typing import Generic, TypeVar

T = TypeVar("T", bound=Hashable)
# What is out of date is thrown out when that halves what is held, and not below this many.
SPARE = 64


class Heap(Generic[T]):
    """Items by key, those of equal keys in the order they were set.

    Moving and dropping an item leaves its old entry where it is until it comes first.
    """

    def __init__(self) -> None:
        self._entries: list[tuple[float, int, T]] = []
        self._current: dict[T, tuple[float, int, T]] = {}
        self._count = itertools.count()

    def set(self, item: T, key: float) -> None:
        """Adds an item, or moves it to another key."""
        entry = self._current[item] = (key, next(self._count), item)
        heapq.heappush(self._entries, entry)
        if len(self._entries) > 2 * len(self._current) + SPARE:
            self._entries = list(self._current.values())
            heapq.heapify(self._entries)

    def discard(self, item: T) -> None:
        self._current.pop(item, None)

    def first(self) -> tuple[float, T] | None:
        """(key, item) of the smallest key."""
        while self._entries:
            key, _, item = self._entries[0]
            if self._current.get(item) is self._entries[0]:
                return key, item
            heapq.heappop(self._entries)
        return None
