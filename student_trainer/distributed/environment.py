"""What torchrun says of a process in its environment, without torch."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

# What torchrun tells its processes: names, and beginnings of names.
NAMES = {"RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK", "GROUP_WORLD_SIZE",
         "MASTER_ADDR", "MASTER_PORT"}  # fmt: skip
BEGINNINGS = ("ROLE_", "TORCHELASTIC_")


def spoken_rank() -> str:
    """``rank R: ``, with which a process begins what it says, where it is not the first or the
    only rank; otherwise empty."""
    several = os.environ.get("WORLD_SIZE", "1") != "1"
    rank = os.environ.get("RANK", "0")
    return f"rank {rank}: " if several and rank != "0" else ""


def ranks_here() -> int:
    """How many ranks of the run this machine has; 1 for a process that was started by itself."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


@contextmanager
def without_ranks() -> Iterator[None]:
    """Inside, new processes do not take themselves for ranks of the run."""
    said = {n: v for n, v in os.environ.items() if n in NAMES or n.startswith(BEGINNINGS)}
    for name in said:
        del os.environ[name]
    try:
        yield
    finally:
        os.environ.update(said)
