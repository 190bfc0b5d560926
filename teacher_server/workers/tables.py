"""Tables of pairs in students' processes: as many as are kept at once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Protocol, TypeVar


class Holder(Protocol):
    """A process: the run that it counts for, how many use it, and a teacher for each vocabulary
    with which it has tables."""

    run: str
    teachers: dict[int, str]

    @property
    def users(self) -> int: ...


H = TypeVar("H", bound=Holder)


def to_forget(held: Sequence[H], most: int) -> list[tuple[H, int]]:
    """The tables (of which process, with which vocabulary) to drop so that ``most`` are left:
    those of the run that has most, the least recently used first. What is in use is kept.

    Args:
        held: all processes, the least recently used first.
    """
    of_runs: Counter[str] = Counter()
    for one in held:
        of_runs[one.run] += len(one.teachers)
    idle = [(one, side) for one in held if not one.users for side in one.teachers]
    found: list[tuple[H, int]] = []
    while of_runs.total() > most and idle:
        pair = max(idle, key=lambda pair: of_runs[pair[0].run])  # the first of those that tie
        idle.remove(pair)
        of_runs[pair[0].run] -= 1
        found.append(pair)
    return found
