"""The audit log: one JSON object a line, who called what, when and how it ended.

Never contents, never secrets. A call whose line cannot be written fails.
"""

from __future__ import annotations

import errno
import json
import os
from datetime import UTC, datetime
from pathlib import Path

from teacher_proto.errors import ConfigurationError, LsmError, TeacherUnavailableError

SETTING = "access.audit_file"


class AuditLog:
    """Appends to a file; ``reopen`` after it was moved away."""

    def __init__(self, path: Path) -> None:
        """Opens it and writes a first line.

        Raises:
            ConfigurationError: it cannot be opened.
            LsmError: it cannot be written.
        """
        self._path = path
        self._whole = True
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
        old, self._file = self._file, self._open()
        os.close(old)

    def write(self, entry: dict[str, str]) -> None:
        """Adds a line.

        Raises:
            TeacherUnavailableError: it cannot be written; the call must not succeed.
        """
        try:
            self._write(entry)
        except OSError as error:
            raise TeacherUnavailableError(
                f"the server's audit log cannot be written: {error.strerror}",
                where=SETTING,
                fix="make room on the server's disk; the call may be sent again",
                reason="AUDIT_FAILED",
                retry_after=1.0,
            ) from None

    def close(self) -> None:
        os.close(self._file)

    def _open(self) -> int:
        return os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)

    def _write(self, entry: dict[str, str]) -> None:
        time = datetime.now(UTC).isoformat(timespec="milliseconds")
        line = json.dumps({"time": time} | entry, ensure_ascii=False).encode() + b"\n"
        if not self._whole:
            line = b"\n" + line
        written = os.write(self._file, line)
        self._whole = written == len(line)
        if not self._whole:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
