"""How the ranks of one start find each other.

torchrun keeps one store for all starts of a run (its rendezvous shares it), and torch's process
groups leave the addresses of their ranks in it. A rank that is started again would find those of
ranks that have died. So the ranks of each start agree on a name of their own, and keep everything
under it.
"""

from __future__ import annotations

import os
import time
from datetime import timedelta

from torch.distributed import PrefixStore, Store  # type: ignore[attr-defined]

PAUSE = 0.05


def meet(store: Store, rank: int, size: int, timeout: float) -> Store:
    """The part of a store that belongs to this start alone.

    Every rank but the first says a name that it has just drawn, until the first one answers to
    it; names of an earlier start are answered, too, and nobody reads that.

    Args:
        timeout: seconds to wait for all of them.

    Raises:
        RuntimeError: not all ranks are there in time.
    """
    name = os.urandom(8).hex()
    if rank == 0:
        _answer(store, name, size, timeout)
        return PrefixStore(name, store)
    store.set(f"hello/{rank}", name)
    store.wait([f"answer/{name}"], timedelta(seconds=timeout))
    start = store.get(f"answer/{name}").decode()
    store.set(f"here/{start}/{rank}", "1")
    return PrefixStore(start, store)


def _answer(store: Store, start: str, size: int, timeout: float) -> None:
    """Answers every rank with the name of this start, until all have said that they know it."""
    missing, deadline = set(range(1, size)), time.monotonic() + timeout
    while missing:
        for rank in sorted(missing):
            if store.check([f"hello/{rank}"]):
                store.set(f"answer/{store.get(f'hello/{rank}').decode()}", start)
            if store.check([f"here/{start}/{rank}"]):
                missing.discard(rank)
        if missing and time.monotonic() > deadline:
            raise RuntimeError(f"ranks {sorted(missing)} have not come within {timeout:g} s")
        if missing:
            time.sleep(PAUSE)
