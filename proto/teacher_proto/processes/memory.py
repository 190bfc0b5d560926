"""Memory that a process has freed, and that goes back to the system."""

from __future__ import annotations

import contextlib
import ctypes


def give_back_free_pages() -> None:
    """Pages of every heap that hold nothing go back to the system, wherever in it they are.
    Elsewhere than on glibc nothing is done."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
