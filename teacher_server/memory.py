"""Memory that large bodies leave with the process, and that goes back to the system."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import time
from pathlib import Path

from teacher_proto.processes.memory import give_back_free_pages

# Of glibc's malloc.h: from which size a block is mapped by itself, how much is kept free at the
# end of a heap, and how many heaps there are.
M_MMAP_THRESHOLD, M_TRIM_THRESHOLD, M_ARENA_MAX = -3, -1, -8
LARGE_BLOCK, KEPT_AT_THE_TOP = 8 << 20, 8 << 20
HEAPS = 1
# The heaps are looked through when the process has so many bytes more than it had at the least.
# Whether it has is looked at so often; to look through the heaps takes one part in SHARE of a
# thread's time at most.
GROWTH = 8 << 20
LOOK_SECONDS = 0.02
SHARE = 4


def give_freed_memory_back() -> None:
    """Blocks of the size of large bodies go back to the system when they are freed. By itself
    glibc keeps blocks of up to 32 MiB once such a one was freed, in every thread's heap, where
    what is small keeps what is large from being used again. All threads share one heap, where what
    one has freed serves the others: by itself glibc has eight for each core. Elsewhere than on
    glibc nothing is set."""
    with contextlib.suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(M_MMAP_THRESHOLD, LARGE_BLOCK)
        mallopt(M_TRIM_THRESHOLD, KEPT_AT_THE_TOP)
        mallopt(M_ARENA_MAX, HEAPS)


def resident() -> int:
    """Bytes of memory that the process has; 0 where the system does not say (Linux does)."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")
    return 0


async def give_back_as_it_grows() -> None:
    """``give_back_free_pages`` whenever the process has grown, in a thread; for ever.

    gRPC receives a message in small blocks, each in a heap of the thread that read it. Freed, they
    stay with the process wherever something else lies behind them.
    """
    least = resident()
    while True:
        await asyncio.sleep(LOOK_SECONDS)
        now = resident()
        if not now:
            continue
        least = min(least or now, now)
        if now - least >= GROWTH:
            begun = time.monotonic()
            await asyncio.to_thread(give_back_free_pages)
            least = resident()
            await asyncio.sleep((SHARE - 1) * (time.monotonic() - begun))
