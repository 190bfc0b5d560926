"""Waits for rank 0 that last as long as what it does, however long a rank waits at most.

Rank 0 says from time to time that it is alive. Where it dies its connections close, and the waits
end at once.
"""

from __future__ import annotations

from collections.abc import Callable
from threading import Event, Thread
from typing import TypeVar

import torch
import torch.distributed as dist

# Seconds between two signs of life: far less than ranks wait for each other.
PAUSE = 0.5
ALIVE, OVER = 1, 2
T = TypeVar("T")


def kept_waiting(action: Callable[[], T], size: int) -> T:
    """Does something on rank 0, and keeps every other rank in ``wait`` for as long.

    Args:
        action: what no other rank takes part in.
        size: how many ranks there are.

    Raises:
        RuntimeError: another rank is gone.
    """
    over = Event()

    def tell(value: int) -> None:
        for rank in range(1, size):
            dist.send(torch.tensor([value]), rank)

    def signs() -> None:
        while not over.wait(PAUSE):
            tell(ALIVE)
        tell(OVER)

    ended, failed = _started(signs)
    try:
        found = action()
    finally:
        over.set()
        _until(ended)
    if failed:
        raise failed[0]
    return found


def wait() -> None:
    """Waits until rank 0 has done what it does, also where a signal would end this rank before.

    Raises:
        RuntimeError: rank 0 is gone.
    """
    said = torch.tensor([ALIVE])

    def signs() -> None:
        while int(said) != OVER:
            dist.recv(said, 0)

    ended, failed = _started(signs)
    _until(ended)
    if failed:
        raise failed[0]


def _started(do: Callable[[], None]) -> tuple[Event, list[RuntimeError]]:
    """Does something in a thread: what is set once it has ended, and what it has failed by."""
    ended = Event()
    failed: list[RuntimeError] = []

    def run() -> None:
        try:
            do()
        except RuntimeError as error:
            failed.append(error)
        finally:
            ended.set()

    Thread(target=run, daemon=True).start()
    return ended, failed


def _until(ended: Event) -> None:
    """Waits for the end of a thread; a signal's error is raised after it. (Python 3.11 takes a
    thread for ended whose ``join`` a signal's error has left.)"""
    told: SystemExit | None = None
    while not ended.is_set():
        try:
            ended.wait()
        except SystemExit as error:
            told = error
    if told is not None:
        raise told
