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
import select
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

from teacher_server.failures import as_exception, is_ending
from teacher_server.telemetry import native_lines

log = logging.getLogger(__name__)

STDIN, STDOUT, STDERR = 0, 1, 2
# How long the last lines of native code may take once the server has ended.
READER_SECONDS = 2.0
# After which it is tried again to start the reader.
AGAIN_SECONDS = 1.0


@contextlib.contextmanager
def json_stderr() -> Iterator[TextIO]:
    """The stream for the server's own lines; meanwhile whatever else is written to stderr
    becomes JSON there too, and so do warnings, failures of threads and crashes.

    Afterwards stderr is what it was, for the line that says why a program could not run.
    """
    sys.stderr.flush()
    saved = os.dup(STDERR)
    reader = _Reader(saved)
    faulthandler.enable(STDERR)
    # It stays open: what is logged as the program ends still has a place.
    stream = open(saved, "w", encoding="utf-8", errors="backslashreplace")  # noqa: SIM115
    try:
        with _failures_logged():
            yield stream
    finally:
        faulthandler.disable()
        sys.stderr.flush()
        reader.end()


def open_missing_streams() -> None:
    """Opens the null device in place of a standard stream that is closed, so that no other
    file takes its number."""
    for descriptor in (STDIN, STDOUT, STDERR):
        try:
            os.fstat(descriptor)
        except OSError:
            opened = os.open(os.devnull, os.O_RDWR)
            os.dup2(opened, descriptor)
            if opened != descriptor:
                os.close(opened)
            else:
                os.set_inheritable(descriptor, True)
    if sys.stdout is None:
        sys.stdout = open(STDOUT, "w", closefd=False)  # noqa: SIM115
    if sys.stderr is None:
        sys.stderr = open(STDERR, "w", errors="backslashreplace", closefd=False)  # noqa: SIM115


class _Reader:
    """The process that makes JSON of what is written to descriptor 2.

    Where it ends before the server, another one goes on with the same pipe, so that neither
    the server nor its children notice.
    """

    def __init__(self, output: int) -> None:
        """``output``: descriptor that it writes to."""
        self._output = output
        self._pipe, write = os.pipe()
        self._ending = threading.Event()
        self._process = self._start()
        os.dup2(write, STDERR)
        os.close(write)
        threading.Thread(target=self._watch, name="stderr", daemon=True).start()

    def end(self) -> None:
        """Stderr is what it was; what was written is read to its end."""
        self._ending.set()
        os.dup2(self._output, STDERR)
        # Children of the server may still hold the pipe; the reader ends with the last one.
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(READER_SECONDS)

    def _start(self) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [sys.executable, "-I", "-S", str(Path(native_lines.__file__))],
            stdin=self._pipe,
            stdout=self._output,
            stderr=self._output,
            start_new_session=True,
        )

    def _watch(self) -> None:
        while True:
            self._process.wait()
            if self._ending.is_set():
                return
            log.error("the process that reads stderr ended; it is started again")
            try:
                self._process = self._start()
            except OSError as error:
                log.error("it cannot be started: %s", error.strerror)
                self._leave_out(AGAIN_SECONDS)

    def _leave_out(self, seconds: float) -> None:
        """Nobody waits meanwhile for what is in the pipe to be read."""
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0 and not self._ending.is_set():
            if select.select([self._pipe], [], [], left)[0]:
                os.read(self._pipe, 65536)


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
