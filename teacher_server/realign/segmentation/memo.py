"""A hash table from int64 keys to int64 values, looked up many keys at once."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Int64 = NDArray[np.int64]
# What ``get`` gives for a key that is not there; no value is below 0.
ABSENT = -1
_EMPTY = -1
_FIRST_BITS = 12
# Odd, and near 2**64 over the golden ratio: spreads keys that differ in few bits.
_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)


class Memo:
    """Open addressing with linear probing; at most half full. Keys and values are >= 0."""

    def __init__(self) -> None:
        self._count = 0
        self._allocate(_FIRST_BITS)

    def __len__(self) -> int:
        return self._count

    def get(self, keys: Int64) -> Int64:
        """int64 [n]: the value of each key, or ABSENT."""
        slot = self._slot(keys)
        found = self._keys.take(slot)
        there = found == keys
        result = self._values.take(slot)
        if there.all():
            return result
        result[~there] = ABSENT
        open_ = np.flatnonzero(~there & (found != _EMPTY))
        while len(open_):
            slot[open_] = (slot[open_] + 1) & self._mask
            found = self._keys[slot[open_]]
            hit = found == keys[open_]
            result[open_[hit]] = self._values[slot[open_[hit]]]
            open_ = open_[~hit & (found != _EMPTY)]
        return result

    def get_or_ask(self, keys: Int64, ask: Callable[[list[int]], Int64]) -> Int64:
        """int64 [n]: the value of each key; ``ask``: those of keys that are new, each once."""
        found = self.get(keys)
        missing = found == ABSENT
        if missing.any():
            new = np.unique(keys[missing])
            self.put(new, ask(new.tolist()))
            found = self.get(keys)
        return found

    def put(self, keys: Int64, values: Int64) -> None:
        """Adds keys that are not there yet, each once."""
        if 2 * (self._count + len(keys)) > len(self._keys):
            old = self._keys != _EMPTY
            old_keys, old_values = self._keys[old], self._values[old]
            self._allocate(int(4 * (self._count + len(keys))).bit_length())
            self._insert(old_keys, old_values)
        self._insert(keys, values)
        self._count += len(keys)

    def _allocate(self, bits: int) -> None:
        self._shift = np.uint64(64 - bits)
        self._mask = (1 << bits) - 1
        self._keys = np.full(1 << bits, _EMPTY, np.int64)
        self._values = np.zeros(1 << bits, np.int64)

    def _slot(self, keys: Int64) -> Int64:
        """Where the search for each key begins."""
        slot: Int64 = ((keys.view(np.uint64) * _MULTIPLIER) >> self._shift).view(np.int64)
        return slot

    def _insert(self, keys: Int64, values: Int64) -> None:
        slot = self._slot(keys)
        left = np.arange(len(keys))
        while len(left):
            free = left[self._keys[slot[left]] == _EMPTY]
            # Of several keys that want one slot the last one written has it.
            self._keys[slot[free]] = keys[free]
            self._values[slot[free]] = values[free]
            left = left[self._keys[slot[left]] != keys[left]]
            slot[left] = (slot[left] + 1) & self._mask
