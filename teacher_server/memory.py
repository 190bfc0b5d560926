"""Memory that large bodies leave with the process, and that goes back to the system."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
from collections.abc import Callable

# Of glibc's malloc.h: from which size a block is mapped by itself, and how much is kept free at
# the end of a heap.
M_MMAP_THRESHOLD, M_TRIM_THRESHOLD = -3, -1
LARGE_BLOCK, KEPT_AT_THE_TOP = 8 << 20, 8 << 20
# The heaps are looked through after so many bytes of bodies, and no more often than this.
GIVEN_BACK_AFTER = 16 << 20
LOOK_SECONDS = 0.1


def give_freed_memory_back() -> None:
    """Blocks of the size of large bodies go back to the system when they are freed. By itself
    glibc keeps blocks of up to 32 MiB once such a one was freed, in every thread's heap, where
    what is small keeps what is large from being used again. Elsewhere than on glibc nothing
    is set."""
    with contextlib.suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(M_MMAP_THRESHOLD, LARGE_BLOCK)
        mallopt(M_TRIM_THRESHOLD, KEPT_AT_THE_TOP)


def give_back_free_pages() -> None:
    """Pages of every heap that hold nothing go back to the system, wherever in it they are.
    Elsewhere than on glibc nothing is done."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


async def give_back_after(passed: Callable[[], int]) -> None:
    """``give_back_free_pages`` while large bodies come and go, in a thread; for ever.

    gRPC receives a message in small blocks, each in a heap of the thread that read it. Freed, they
    stay with the process wherever something else lies behind them.

    Args:
        passed: bytes of all the bodies that were read and are done with.
    """
    before = passed()
    while True:
        await asyncio.sleep(LOOK_SECONDS)
        now = passed()
        if now - before >= GIVEN_BACK_AFTER:
            before = now
            await asyncio.to_thread(give_back_free_pages)
