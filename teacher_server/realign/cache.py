"""Pair tables in memory and on disk, by the content hashes of both tokenizers."""

from __future__ import annotations

import os
import tempfile
import threading
import zipfile
from collections import OrderedDict
from pathlib import Path

import numpy as np

from teacher_server.realign.tables import PairTables, StaticTables, build_static
from teacher_server.realign.vocabulary import Vocabulary

# Part of every file's name: changes when the tables mean something else.
FORMAT = 2


class TableCache:
    """Thread-safe; builds a pair once.

    Args:
        folder: where tables are kept; None keeps them in memory only.
        max_pairs: pairs in memory, the least recently used one goes first.
    """

    def __init__(self, folder: Path | None, max_pairs: int = 16) -> None:
        self._folder = folder
        self._max_pairs = max_pairs
        self._pairs: OrderedDict[tuple[str, str], PairTables] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, student: Vocabulary, teacher: Vocabulary) -> PairTables:
        """The tables of a pair; built when neither memory nor disk has them."""
        key = (student.hash, teacher.hash)
        with self._lock:
            found = self._pairs.pop(key, None)
            if found is None or found.student.roles != student.roles:
                found = PairTables(student, teacher, self._static(student, teacher))
            self._pairs[key] = found
            while len(self._pairs) > self._max_pairs:
                self._pairs.popitem(last=False)
            return found

    def _static(self, student: Vocabulary, teacher: Vocabulary) -> StaticTables:
        if self._folder is None:
            return build_static(student, teacher)
        path = self._folder / f"v{FORMAT}-{student.hash}-{teacher.hash}.npz"
        loaded = _load(path, student, teacher)
        if loaded is None:
            loaded = build_static(student, teacher)
            _save(path, loaded)
        return loaded


def _load(path: Path, student: Vocabulary, teacher: Vocabulary) -> StaticTables | None:
    """What the file holds; None when there is none, or it is damaged."""
    try:
        with np.load(path, allow_pickle=False) as file:
            phi0, edges, leak = file["phi0"], file["edges"], file["leak"]
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None
    whole = (
        phi0.dtype == np.int32
        and phi0.shape == (teacher.size,)
        and leak.dtype == np.float32
        and leak.shape == (teacher.size,)
        and edges.dtype == np.int64
        and edges.ndim == 2
        and edges.shape[1] == 3
        and phi0.max(initial=-1) < student.size
        and edges[:, 1].max(initial=0) < teacher.size
    )
    return StaticTables(phi0, edges, leak) if whole else None


def _save(path: Path, tables: StaticTables) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(prefix=".tables-", dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            np.savez(file, phi0=tables.phi0, edges=tables.edges, leak=tables.leak)
        Path(name).replace(path)
    finally:
        Path(name).unlink(missing_ok=True)
