"""The processes that vLLM has started below this one."""

from __future__ import annotations

import contextlib

import psutil


def processes(title: str) -> list[psutil.Process]:
    """Living processes below this one whose command line has ``title``."""
    found = []
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            running = process.status() != psutil.STATUS_ZOMBIE
            if running and title in " ".join(process.cmdline()):
                found.append(process)
    return found
