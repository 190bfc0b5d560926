"""Tables of pairs on disk: a folder for each student's tokenizer, so that what one tokenizer's
process writes is of that tokenizer alone, and goes with its registrations."""

from __future__ import annotations

import contextlib
import re
import shutil
import time
from collections.abc import Container, Iterable
from pathlib import Path

from teacher_server.realign.pair.cache import student_of
from teacher_server.tokenizers.folder import LEFT_BEHIND_SECONDS

_KEY = re.compile(r"[0-9a-f]{64}")


def tables_of(folder: Path | None, key: str) -> str:
    """The folder of the tokenizer whose process has this key; empty where none is kept."""
    return "" if folder is None else str(folder / key)


def forget_tables(folder: Path | None, keys: Iterable[str]) -> None:
    """Deletes the tables of these tokenizers."""
    if folder is not None:
        for key in keys:
            shutil.rmtree(folder / key, ignore_errors=True)


def sweep_tables(folder: Path | None, kept: Container[str]) -> None:
    """Deletes tables that were left behind: those of all tokenizers but the ones with these
    keys, unless a server may just have built them.

    Tables of an earlier release, which are in no such folder, go too; what is no table is left
    alone.
    """
    if folder is None:
        return
    with contextlib.suppress(OSError):  # there is none yet, or it cannot be written
        for path in folder.iterdir():
            if _KEY.fullmatch(path.name) and path.name not in kept:
                if time.time() - path.stat().st_mtime > LEFT_BEHIND_SECONDS:
                    shutil.rmtree(path, ignore_errors=True)
            elif student_of(path) is not None:
                path.unlink(missing_ok=True)
