"""What torchrun says of a process in its environment, without torch."""

from __future__ import annotations

import os


def spoken_rank() -> str:
    """``rank R: ``, with which a process begins what it says, where it is not the first or the
    only rank; otherwise empty."""
    several = os.environ.get("WORLD_SIZE", "1") != "1"
    rank = os.environ.get("RANK", "0")
    return f"rank {rank}: " if several and rank != "0" else ""
