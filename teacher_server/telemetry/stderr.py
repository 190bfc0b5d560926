"""Stderr as JSON lines, whoever writes to it.

The server's own lines go straight to stderr. Everything else that is written to descriptor 2,
by native code or by the interpreter as it crashes, goes through a pipe to a small process
(``native_lines``) that makes JSON of it and outlives the server, so that last words are
not lost.
"""

from __future__ import annotations

import asyncio
import contextlib
import faulthandler
import logging
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

from teacher_server.failures import as_exception, is_ending
from teacher_server.telemetry import native_lines

log = logging.getLogger(__name__)

STDERR = 2
# How long the last lines of native code may take once the server has ended.
READER_SECONDS = 2.0


@contextlib.contextmanager
def json_stderr() -> Iterator[TextIO]:
    """The stream for the server's own lines; meanwhile whatever else is written to stderr
    becomes JSON there too, and so do warnings, failures of threads and crashes.

    Afterwards stderr is what it was, for the line that says why a program could not run.
    """
    sys.stderr.flush()
    saved = os.dup(STDERR)
    reader = subprocess.Popen(
        [sys.executable, "-I", "-S", str(Path(native_lines.__file__))],
        stdin=subprocess.PIPE,
        stdout=saved,
        stderr=saved,
        start_new_session=True,
    )
    assert reader.stdin is not None
    os.dup2(reader.stdin.fileno(), STDERR)
    reader.stdin.close()
    faulthandler.enable(STDERR)
    # It stays open: what is logged as the program ends still has a place.
    stream = open(saved, "w", encoding="utf-8", errors="backslashreplace")  # noqa: SIM115
    try:
        with _failures_logged():
            yield stream
    finally:
        faulthandler.disable()
        sys.stderr.flush()
        os.dup2(saved, STDERR)
        # Children of the server may still hold the pipe; the reader ends with the last one.
        with contextlib.suppress(subprocess.TimeoutExpired):
            reader.wait(READER_SECONDS)


@contextlib.contextmanager
def _failures_logged() -> Iterator[None]:
    """Warnings and failures that nobody catches are lines of the log."""
    before = threading.excepthook, sys.unraisablehook, sys.excepthook
    logging.captureWarnings(True)
    threading.excepthook = _of_a_thread
    sys.unraisablehook = _unraisable
    sys.excepthook = _uncaught
    try:
        yield
    finally:
        threading.excepthook, sys.unraisablehook, sys.excepthook = before
        logging.captureWarnings(False)


def log_failures_of(loop: asyncio.AbstractEventLoop) -> None:
    """Failures in callbacks and forgotten tasks of the loop are lines of the log, without the
    text of what failed, which asyncio would put into the line."""

    def failed(_: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        _failed("the event loop: " + str(context.get("message", "")), context.get("exception"))

    loop.set_exception_handler(failed)


def _of_a_thread(failure: threading.ExceptHookArgs) -> None:
    name = "" if failure.thread is None else failure.thread.name
    _failed(f"the thread {name} failed", failure.exc_value)


def _unraisable(failure: Any) -> None:
    _failed("a failure that could not be raised", failure.exc_value)


def _uncaught(
    kind: type[BaseException], error: BaseException, traceback: TracebackType | None
) -> None:
    _failed("the program failed", error)


def _failed(event: str, error: BaseException | None) -> None:
    if error is None or is_ending(error):
        log.error("%s", event if error is None else f"{event}: {type(error).__name__}")
    else:
        log.error("%s", event, exc_info=as_exception(error))
