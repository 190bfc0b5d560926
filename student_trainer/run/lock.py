"""Only one process at a time may write in a run's directory.

The lock is the kernel's (flock): it ends with the process that holds it, however that
process ends. The lock file only names the holder; it is never removed.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from teacher_proto.errors import ConfigurationError

log = logging.getLogger(__name__)

LOCK_NAME = ".lock"
# Descriptors of the locks that this process holds. A child that is forked without exec
# closes its copies: otherwise they would keep the lock after the parent has ended.
_held: set[int] = set()


def _forget() -> None:
    for descriptor in _held:
        os.close(descriptor)
    _held.clear()


os.register_at_fork(after_in_child=_forget)


@contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Holds the lock of the directory, which is created when it does not exist.

    On a file system without locks the run continues, with a warning.

    Raises:
        ConfigurationError: another process holds the lock, or the directory cannot be
            written.
    """
    path = directory / LOCK_NAME
    try:
        directory.mkdir(parents=True, exist_ok=True)
        # Not inherited by programs that are started (PEP 446).
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise ConfigurationError(
            f"cannot write in {directory}: {error.strerror}",
            where="run.output_dir",
            fix="choose a directory that can be written",
        ) from error
    _held.add(descriptor)
    try:
        if _taken(descriptor, path, fcntl.LOCK_EX):
            raise _refused(directory)
        holder = {
            "pid": os.getpid(),
            "host": socket.gethostname(),
            "since": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, json.dumps(holder).encode() + b"\n", 0)
        yield
    finally:
        _held.discard(descriptor)
        os.close(descriptor)


def check_free(directory: Path) -> None:
    """Checks that no run holds the directory, without writing anything. A run that starts
    at this very moment is refused.

    Raises:
        ConfigurationError: a process holds the lock.
    """
    path = directory / LOCK_NAME
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError:
        return
    try:
        if _taken(descriptor, path, fcntl.LOCK_SH):
            raise _refused(directory)
    finally:
        os.close(descriptor)


def is_free(directory: Path) -> bool:
    """Whether no run holds the directory."""
    try:
        check_free(directory)
    except ConfigurationError:
        return False
    return True


def _taken(descriptor: int, path: Path, kind: int) -> bool:
    """Whether another open file holds the lock. When none does, takes it."""
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError as error:
        log.warning(
            "%s cannot be locked (%s): nothing keeps a second run out of the directory",
            path, error.strerror,
        )  # fmt: skip
    return False


def _refused(directory: Path) -> ConfigurationError:
    return ConfigurationError(
        f"{directory} is written by {_holder(directory / LOCK_NAME)}",
        where="run.output_dir",
        fix="wait until that run has ended or stop it, or choose another run.output_dir",
    )


def _holder(path: Path) -> str:
    """The holder that the lock file names, for people."""
    try:
        holder = json.loads(path.read_text(encoding="utf-8"))
        return f"another run: process {holder['pid']} on {holder['host']} since {holder['since']}"
    except (OSError, ValueError, KeyError, TypeError):
        return "another run"
