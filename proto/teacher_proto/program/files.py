"""Files and folders that appear whole or not at all.

What is written stands under a name of its own beside its target until it is complete;
then one rename puts it there. A reader sees the old content or the new. A process that
is killed before the rename leaves the old content, and beside it an unfinished file or
folder whose name begins with a dot.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO


@contextmanager
def atomic_file(path: Path, *, mode: int = 0o666) -> Iterator[BinaryIO]:
    """Gives an empty binary file, which replaces ``path`` once the block ends.

    An error in the block leaves ``path`` as it was.

    Args:
        mode: permissions before the umask; 0o600 for what its owner alone may read.

    Raises:
        OSError: it cannot be written, for one since the disk is full; ``path`` is in
            the message.
    """
    part = _beside(path, ".")
    try:
        descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
        with os.fdopen(descriptor, "wb") as file:
            yield file
        part.replace(path)
    except OSError as error:
        if error.errno is None or error.filename not in (None, str(part)):
            raise
        # A write does not know its file's name, and the unfinished one's helps nobody.
        raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        with contextlib.suppress(OSError):
            part.unlink()


def write_bytes(path: Path, data: bytes, *, mode: int = 0o666) -> None:
    """Replaces a file whole; arguments and errors as ``atomic_file``."""
    with atomic_file(path, mode=mode) as file:
        file.write(data)


def write_text(path: Path, text: str) -> None:
    """Replaces a file whole by a text in UTF-8; errors as ``atomic_file``."""
    write_bytes(path, text.encode())


@contextmanager
def atomic_folder(
    path: Path,
    *,
    prefix: str = ".",
    replace: bool = False,
    readable: bool = False,
    sync: bool = False,
) -> Iterator[Path]:
    """Gives an empty folder, which becomes ``path`` once the block ends.

    An error in the block removes it and leaves ``path`` as it was.

    Args:
        path: nothing, or an empty folder, unless ``replace`` is set; the folder around
            it is made where it is missing.
        prefix: begins the names of unfinished folders, so that a later process finds
            those of one that was killed.
        replace: a folder at ``path`` is replaced.
        readable: anybody may read the folder and the files in it, whatever the umask
            and the library that wrote them.
        sync: everything is on the disk before the rename, and the rename before this
            returns: the folder is whole even if the machine loses its power.

    Raises:
        OSError: something is at ``path``, or it cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    work = _beside(path, prefix)
    work.mkdir()
    try:
        yield work
        if readable:
            for inside in work.iterdir():
                inside.chmod(0o644)
            work.chmod(0o755)
        if sync:
            _sync_tree(work)
        before = _set_aside(path, prefix) if replace and path.exists() else None
        work.rename(path)
        if sync:
            _sync(path.parent)
        if before is not None:
            shutil.rmtree(before)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def remove_folder(path: Path, *, prefix: str = ".") -> None:
    """Removes a folder of which no reader ever sees a part; ``prefix`` as in
    ``atomic_folder``."""
    shutil.rmtree(_set_aside(path, prefix))


def file_sha256(path: Path) -> str:
    """sha256 of a file's content, hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _beside(path: Path, prefix: str) -> Path:
    return path.with_name(f"{prefix}{path.name}.{os.urandom(4).hex()}")


def _set_aside(path: Path, prefix: str) -> Path:
    aside = _beside(path, f"{prefix}old-")
    path.rename(aside)
    return aside


def _sync_tree(folder: Path) -> None:
    """Writes a folder's files to the disk, then the folders, the inner ones first."""
    for inside, _, names in os.walk(folder, topdown=False):
        for name in names:
            _sync(Path(inside, name))
        _sync(Path(inside))


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def expand_home(value: Any) -> Any:
    """``~`` as a shell reads it: a path or a text that begins with ``~/`` or ``~NAME/``, from
    its home folder; anything else as it is.

    Raises:
        ValueError: the home folder is not known.
    """
    if not str(value).startswith("~") or not isinstance(value, str | Path):
        return value
    try:
        found = Path(value).expanduser()
    except RuntimeError as error:
        raise ValueError(f"{str(error).rstrip('.')}: write the folder's own path") from None
    return found if isinstance(value, Path) else str(found)
