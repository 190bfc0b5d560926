"""The audit log: one JSON object a line, who called what, when and how it ended.

Never contents, never secrets. A call whose line cannot be written fails. Refusals of callers
that nobody knows are counted, so that they cannot fill the disk.
"""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import os
import time
from datetime import UTC, datetime
from pathlib import Path

from teacher_proto.errors import ConfigurationError, LsmError, TeacherUnavailableError

from teacher_server.access.strangers import Line, Strangers

log = logging.getLogger(__name__)

SETTING = "access.audit_file"
STDERR = 2
MOST_LINKS = 16


class AuditLog:
    """Appends to a file; ``reopen`` after it was moved away.

    Attributes:
        failure: why the last line could not be written; None when it was.
    """

    def __init__(self, path: Path) -> None:
        """Opens it and writes a first line.

        Raises:
            ConfigurationError: it cannot be opened.
            LsmError: it cannot be written.
        """
        self._path = path
        self._whole = True
        self._strangers = Strangers()
        self.failure: TeacherUnavailableError | None = None
        try:
            self._file = self._open()
        except OSError as error:
            raise ConfigurationError(
                f"cannot be opened: {error.strerror}",
                where=f"{SETTING}={path}",
                fix="give a file in a folder the server may write to",
            ) from None
        try:
            self._write({"event": "start"})
        except OSError as error:
            raise LsmError(
                f"cannot be written: {error.strerror}",
                where=f"{SETTING}={path}",
                fix="make room on its disk",
                reason="AUDIT_FAILED",
            ) from None

    def reopen(self) -> None:
        """Opens the path again, for a file that was moved away; raises OSError."""
        if _is_stderr(self._path):  # nobody can move it away
            return
        old, self._file = self._file, self._open()
        os.close(old)

    def write(self, entry: Line) -> None:
        """Adds a line.

        Raises:
            TeacherUnavailableError: it cannot be written; the call must not succeed.
        """
        try:
            self._write(entry)
        except OSError as error:
            failure = TeacherUnavailableError(
                f"the server's audit log cannot be written: {error.strerror}",
                where=SETTING,
                fix="make room on the server's disk; the call may be sent again",
                reason="AUDIT_FAILED",
                retry_after=1.0,
            )
            if self.failure is None:
                log.error("%s", failure)
            self.failure = failure
            raise failure from None
        if self.failure is not None:
            log.info("the audit log can be written again")
        self.failure = None

    def refused(self, entry: Line) -> None:
        """Adds the refusal of a caller that nobody knows, or counts it.

        Raises:
            TeacherUnavailableError: its line cannot be written.
        """
        line = self._strangers.add(entry, time.monotonic())
        if line is None:
            return
        try:
            self.write(line)
        except LsmError:
            self._strangers.not_written(entry)
            raise

    def look(self) -> None:
        """Writes the counts that are due, and tries again where a line could not be written."""
        with contextlib.suppress(LsmError):
            if self.failure is not None:
                self.write({"event": "writable"})
            for line in self._strangers.due(time.monotonic()):
                self.write(line)

    def close(self) -> None:
        """Writes what was only counted, if it can."""
        with contextlib.suppress(LsmError):
            for line in self._strangers.due(time.monotonic(), all_of_them=True):
                self.write(line)
        os.close(self._file)

    def _open(self) -> int:
        if _is_stderr(self._path):
            # The server's own, whatever its descriptor stands for later on.
            return os.dup(STDERR)
        return os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)

    def _write(self, entry: Line) -> None:
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        line = json.dumps({"time": now} | entry, ensure_ascii=False).encode() + b"\n"
        if not self._whole:
            line = b"\n" + line
        written = os.write(self._file, line)
        self._whole = written == len(line)
        if not self._whole:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _is_stderr(path: Path) -> bool:
    """Whether a path, as ``/dev/stderr``, names this process's standard error."""
    names = {f"{folder}/{STDERR}" for folder in ("/dev/fd", "/proc/self/fd")}
    for _ in range(MOST_LINKS):
        if str(path) in names | {"/dev/stderr", f"/proc/{os.getpid()}/fd/{STDERR}"}:
            return True
        if not path.is_symlink():
            return False
        path = path.parent / path.readlink()
    return False
