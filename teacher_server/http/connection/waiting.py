"""Whose connection is opened next, of those that wait for it: an order, without I/O."""

from __future__ import annotations

from collections import deque

from teacher_server.http.connection.table import Entry


class _ByAddress:
    """One of each address in turn; those of one address in the order in which they came."""

    def __init__(self) -> None:
        self._addresses: dict[str, dict[Entry, None]] = {}

    def add(self, entry: Entry) -> None:
        self._addresses.setdefault(entry.address, {})[entry] = None

    def discard(self, entry: Entry) -> bool:
        """Whether it was there."""
        waiting = self._addresses.get(entry.address, {})
        if entry not in waiting:
            return False
        del waiting[entry]
        if not waiting:
            del self._addresses[entry.address]
        return True

    def take(self) -> Entry | None:
        address = next(iter(self._addresses), None)
        if address is None:
            return None
        waiting = self._addresses.pop(address)
        entry = next(iter(waiting))
        del waiting[entry]
        if waiting:
            self._addresses[address] = waiting
        return entry


class Waiting:
    """Those that ask for health and all others take turns, and within both the addresses.

    So however many connections of one address wait, the first one of another is among the
    next: there is at most one of each address before it, and as many that ask for health.
    """

    def __init__(self) -> None:
        self._health, self._others = _ByAddress(), _ByAddress()
        self._turns = deque((self._health, self._others))
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def add(self, entry: Entry) -> None:
        (self._health if entry.asks_health else self._others).add(entry)
        self._count += 1

    def discard(self, entry: Entry) -> None:
        """It is not opened any more; does no harm where it does not wait."""
        queue = self._health if entry.asks_health else self._others
        self._count -= queue.discard(entry)

    def take(self) -> Entry | None:
        """The next one, which waits no more; None where none waits."""
        for _ in range(len(self._turns)):
            queue = self._turns[0]
            self._turns.rotate()
            entry = queue.take()
            if entry is not None:
                self._count -= 1
                return entry
        return None
