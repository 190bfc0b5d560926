"""What the processes that vLLM starts do for the one that started them.

They end when it is killed, which vLLM itself leaves to its parent's clean exit.
And they say why they could not start: vLLM reports the cause in a child's log and
to its parent only that a child failed. The parent names a file; in each child a
filter of the loggers that report it writes it there (a filter, because vLLM
replaces the handlers of its loggers as a child starts). Nothing here imports vLLM.
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

VARIABLE = "LSM_VLLM_FAILURES"
MAXIMUM_LENGTH = 2000


# Loggers of vLLM's processes that report why one could not start.
LOGGERS = ("vllm.v1.engine.core", "vllm.v1.executor.multiproc_executor")


class FailureFile(logging.Filter):
    """Appends the exceptions that are logged, one line each; lets every record pass."""

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
    """In a child: from now on its failures reach the parent's file; elsewhere nothing."""
    path = os.environ.get(VARIABLE)
    if path:
        for name in LOGGERS:
            logging.getLogger(name).addFilter(FailureFile(path))


def end_with_parent() -> None:
    """In a child: it ends when its parent does, however that ends."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_end_with, args=(parent,), name="lsm-parent", daemon=True).start()


def _end_with(parent: Any) -> None:
    parent.join()
    os._exit(1)


@contextlib.contextmanager
def collected_failures() -> Iterator[Path]:
    """In the parent: a file for the children that it starts inside."""
    with tempfile.TemporaryDirectory(prefix="lsm-vllm-") as directory:
        path = Path(directory) / "failures"
        os.environ[VARIABLE] = str(path)
        try:
            yield path
        finally:
            del os.environ[VARIABLE]


def first_failure(path: Path) -> str:
    """The first line, which is the root cause; empty when there is none."""
    return path.read_text().partition("\n")[0] if path.exists() else ""
