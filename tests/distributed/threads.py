"""The ranks of a run as threads of one process, for what they tell each other alone."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from queue import Queue
from typing import Any

from student_trainer.distributed.world import World

TIMEOUT = 60.0


class Table:
    """What each thread says to each other one, in order."""

    def __init__(self, size: int) -> None:
        self.lanes = [[Queue[bytes | None]() for _ in range(size)] for _ in range(size)]

    def exchange(self, rank: int, mine: bytes) -> list[bytes]:
        for lane in self.lanes[rank]:
            lane.put(mine)
        found = [of[rank].get(timeout=TIMEOUT) for of in self.lanes]
        if None in found:
            raise RuntimeError(f"rank {found.index(None)} has ended")
        return [one for one in found if one is not None]

    def leave(self, rank: int) -> None:
        """Fails the ranks that still wait for this one."""
        for lane in self.lanes[rank]:
            lane.put(None)


@dataclass(frozen=True)
class ThreadWorld(World):
    """A rank whose bytes go over a ``Table``; it has no collective of torch's."""

    table: Table = field(default_factory=lambda: Table(1))

    def _gather_bytes(self, mine: bytes) -> list[bytes]:
        return self.table.exchange(self.rank, mine)


def on_ranks(action: Callable[[World], Any], size: int = 2) -> list[Any]:
    """What ``action`` gives or raises on each rank, in their order."""
    table = Table(size)
    found: list[Any] = [None] * size

    def one(rank: int) -> None:
        try:
            found[rank] = action(ThreadWorld(rank, size, rank, table))
        except (Exception, SystemExit) as error:
            found[rank] = error
        finally:
            table.leave(rank)

    threads = [threading.Thread(target=one, args=(rank,)) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found
