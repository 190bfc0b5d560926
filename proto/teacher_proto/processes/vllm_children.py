"""What the processes that vLLM starts do for the process that started them.

They end when it is killed; vLLM itself ends them only when their parent exits cleanly.
And they report why they could not start: vLLM writes the cause to a child's log, and to
the parent only that a child failed. The parent therefore names a file, and in each child
a filter on the loggers that report the cause writes it there. It is a filter because vLLM
replaces the handlers of its loggers when a child starts. Nothing here imports vLLM.
"""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import os
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

# On a CPU: seconds that a process spins for a message before it waits for a notification, and
# milliseconds after which one that waits looks for itself.
SPIN_SECONDS = 0.005
LOOK_MILLISECONDS = 50
VARIABLE = "LSM_VLLM_FAILURES"
MAXIMUM_LENGTH = 2000
# What vLLM says of children that ended and left no failure.
UNEXPLAINED = ("WorkerProc initialization failed", "Engine core initialization failed")
# The loggers that report why a process of vLLM could not start.
LOGGERS = ("vllm.v1.engine.core", "vllm.v1.executor.multiproc_executor")


class FailureFile(logging.Filter):
    """Appends each exception that is logged to a file, as one line; lets every record pass."""

    def __init__(self, path: str) -> None:
        super().__init__()
        self._path = path

    def filter(self, record: logging.LogRecord) -> bool:
        error = record.exc_info[1] if record.exc_info else None
        if error is not None:
            line = f"{type(error).__name__}: {error}".replace("\n", " ")[:MAXIMUM_LENGTH]
            with contextlib.suppress(OSError), open(self._path, "a") as file:
                file.write(line + "\n")
        return True


def report_failures() -> None:
    """In a child: writes its failures to the parent's file from now on. Elsewhere: nothing."""
    path = os.environ.get(VARIABLE)
    if path:
        for name in LOGGERS:
            logging.getLogger(name).addFilter(FailureFile(path))


def end_with_parent() -> None:
    """In a child: ends this process when its parent ends, in whatever way."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_end_with, args=(parent,), name="lsm-parent", daemon=True).start()


def _end_with(parent: Any) -> None:
    parent.join()
    os._exit(1)


@contextlib.contextmanager
def collected_failures() -> Iterator[Path]:
    """In the parent: a file for the failures of the children that are started meanwhile."""
    with tempfile.TemporaryDirectory(prefix="lsm-vllm-") as directory:
        path = Path(directory) / "failures"
        os.environ[VARIABLE] = str(path)
        try:
            yield path
        finally:
            del os.environ[VARIABLE]


def why_not_started(path: Path, error: Exception) -> str:
    """The first failure of the children, which is the root cause; where none is named, what that
    mostly means.

    Args:
        path: of the children's failures.
        error: what vLLM has raised in the parent.
    """
    why = path.read_text().partition("\n")[0] if path.exists() else ""
    why = why or str(error)
    if any(text in why for text in UNEXPLAINED):
        return "a process of it ended while it started and said no reason; memory may have run out"
    return why


def spin_briefly(shm_broadcast: Any) -> None:
    """On a CPU: lets vLLM's processes spin for milliseconds. No argument of its engine says so.

    By default they spin for a second after every message, on the cores that compute. Without
    spinning they depend on notifications, and ZeroMQ drops one that follows another within
    about a millisecond (the publisher's high-water mark is 1): a reader would then sleep for five
    seconds although its message is there. This spin is longer than that millisecond, and
    a reader looks again often enough to find any message that is left.

    Args:
        shm_broadcast: vLLM's module ``distributed.device_communicators.shm_broadcast``.
    """
    shm_broadcast.SpinCondition.__init__.__defaults__ = (SPIN_SECONDS,)
    shm_broadcast.SHM_READER_RECHECK_INTERVAL_MS = LOOK_MILLISECONDS
