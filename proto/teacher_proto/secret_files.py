"""Files that hold secrets: read only when nobody but their owner can."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from teacher_proto.errors import ConfigurationError

# Tokens, keys and certificates are far smaller.
MAX_BYTES = 1 << 20

Signature = tuple[int, int, int, int, int]


def read_secret(path: Path, where: str) -> bytes:
    """The file's bytes.

    Args:
        where: the setting that names the file.

    Raises:
        ConfigurationError: it cannot be read, is no plain file, is larger than
            1 MiB, or its mode lets group or others at it.
    """
    return _read(path, where, private=True)


def read_public(path: Path, where: str) -> bytes:
    """As ``read_secret``, for a certificate: anybody may read it."""
    return _read(path, where, private=False)


def signature(path: Path) -> Signature | None:
    """Differs after the file was replaced or written; None when it is not there."""
    try:
        found = path.stat()
    except OSError:
        return None
    return (found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_mode)


def token_of(text: str, where: str) -> str:
    """The token in a secret's text, without the line end around it.

    Raises:
        ConfigurationError: it is empty, or not one word of printable ASCII.
    """
    token = text.strip()
    if not token or not all("!" <= letter <= "~" for letter in token):
        raise ConfigurationError(
            "it does not hold a token", where=where, fix="one word of printable ASCII, no more"
        )
    return token


def _read(path: Path, where: str, *, private: bool) -> bytes:
    where = f"{where}={path}"
    try:
        # Not blocking, so that a pipe nobody writes to is refused and not waited for.
        with os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            if not stat.S_ISREG(mode):
                raise ConfigurationError("it is not a plain file", where=where, fix="give a file")
            if private and mode & 0o077:
                raise ConfigurationError(
                    f"its mode {stat.S_IMODE(mode):04o} lets group or others at a secret",
                    where=where,
                    fix=f"chmod 600 {path}",
                    reason="SECRET_EXPOSED",
                )
            data = file.read(MAX_BYTES + 1)
    except IsADirectoryError:
        raise ConfigurationError("it is a folder", where=where, fix="give a file") from None
    except OSError as error:
        raise ConfigurationError(
            f"cannot be read: {error.strerror}", where=where, fix="check the path and its owner"
        ) from None
    if len(data) > MAX_BYTES:
        raise ConfigurationError(f"is larger than {MAX_BYTES} bytes", where=where)
    return data
