"""Memory of students' processes: who is charged what, and who may have more.

Memory is charged before it is used: what the tokenizer took last, or else what its file's size
lets expect. What is measured later corrects it.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Sequence
from typing import Protocol, TypeVar

MIB = 2**20
# Of a process: the least that it counts for, as the kernel and the server hold some for it too.
LEAST_BYTES = 32 * MIB
# What is expected of a file that was not measured: in any case, and for each of its bytes.
BASE_BYTES, BYTES_PER_BYTE = 48 * MIB, 24
# A process that takes more than so many times what was expected, and so much beside, has grown.
GROWN, GROWN_BYTES = 2, 64 * MIB
# A run's processes in use take at most this part of all memory, beyond its first.
PARTS = 2
# Tokenizers of which it is remembered what they took.
MAX_REMEMBERED = 4096


class Charge(Protocol):
    """A process: the run that it counts for, the bytes that it counts for and that were expected
    of it, and how many use it."""

    run: str
    expected_bytes: int

    @property
    def charged_bytes(self) -> int: ...

    @property
    def users(self) -> int: ...


C = TypeVar("C", bound=Charge)


class Expected:
    """What a tokenizer's process will take.

    Args:
        most: of one, in bytes.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._took: OrderedDict[str, int] = OrderedDict()

    def bytes_of(self, key: str, file_bytes: int) -> int:
        """Of the tokenizer with this key, whose file has so many bytes."""
        took = self._took.get(key)
        if took is None:
            took = BASE_BYTES + BYTES_PER_BYTE * file_bytes
        return max(LEAST_BYTES, min(took, self._most))

    def note(self, key: str, took: int) -> None:
        """What was measured once it was opened and its tables were built."""
        self._took[key] = took
        self._took.move_to_end(key)
        if len(self._took) > MAX_REMEMBERED:
            self._took.popitem(last=False)


def in_use(held: Sequence[Charge], run: str) -> int:
    """Bytes of the processes in use that count for a run."""
    return sum(one.charged_bytes for one in held if one.users and one.run == run)


def to_end_for(held: Sequence[C], run: str, more: int, total: int) -> list[C] | None:
    """The idle processes to end so that the run has ``more`` bytes; None where it may not have
    them at the moment.

    Args:
        held: all processes, the least recently used first.
        total: bytes of all.
    """
    own = in_use(held, run)
    if own and own + more > total // PARTS:
        return None
    ended: list[C] = []
    while _sum(held) - _sum(ended) + more > total:
        left = [one for one in held if one not in ended]
        idle = [one for one in left if not one.users]
        if not idle:
            return None
        ended.append(_next(left, idle))
    return ended


def to_end(held: Sequence[C], total: int) -> list[C]:
    """The processes to end where they take more than ``total``: idle ones, and where that is not
    enough those that have grown most. Others that are in use keep what they were given."""
    ended: list[C] = []
    while _sum(held) - _sum(ended) > total:
        left = [one for one in held if one not in ended]
        idle = [one for one in left if not one.users]
        grown = [one for one in left if has_grown(one)]
        if idle:
            ended.append(_next(left, idle))
        elif grown:
            ended.append(max(grown, key=lambda one: one.charged_bytes - one.expected_bytes))
        else:
            break
    return ended


def has_grown(one: Charge) -> bool:
    """Whether a process takes far more than was expected."""
    return one.charged_bytes > GROWN * one.expected_bytes + GROWN_BYTES


def _next(left: Sequence[C], idle: Sequence[C]) -> C:
    """The idle one to end: what has grown, then what is of a run with more than an equal share."""
    of_runs: Counter[str] = Counter()
    for one in left:
        of_runs[one.run] += one.charged_bytes
    share = _sum(left) / len(of_runs)
    grown = [one for one in idle if has_grown(one)]
    return (grown or [one for one in idle if of_runs[one.run] > share] or list(idle))[0]


def _sum(held: Sequence[Charge]) -> int:
    return sum(one.charged_bytes for one in held)
