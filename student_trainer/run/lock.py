"""One process at a time writes in a run's directory.

The lock is the kernel's (flock): it ends with the process that holds it, however that
dies. The file only says who holds it, and stays.
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
# Descriptors of the locks this process holds. A child that is forked without exec closes
# its copies: they would keep the lock when the parent is gone.
_held: set[int] = set()


def _forget() -> None:
    for descriptor in _held:
        os.close(descriptor)
    _held.clear()


os.register_at_fork(after_in_child=_forget)


@contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Holds the directory, which is made where it is not there.

    On a file system that keeps no locks the run goes on, with a warning.

    Raises:
        ConfigurationError: another process holds it, or it cannot be written.
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
    """Writes nothing; for the moment of the look a run that starts there is refused.

    Raises:
        ConfigurationError: a process holds the directory.
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


def _taken(descriptor: int, path: Path, kind: int) -> bool:
    """Whether another open file holds the lock; takes it where none does."""
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
    """Who says to hold it, for people."""
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
        return f"another run: process {told['pid']} on {told['host']} since {told['since']}"
    except (OSError, ValueError, KeyError, TypeError):
        return "another run"
