"""Pair tables in memory and on disk, by the content hashes of both tokenizers."""

from __future__ import annotations

import hashlib
import re
import threading
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
from teacher_proto.program.files import atomic_file

from teacher_server.realign.pair.spelling import as_a_pair
from teacher_server.realign.pair.static_tables import StaticTables, build_static
from teacher_server.realign.pair.tables import PairTables
from teacher_server.realign.pair.vocabulary import Vocabulary

# Part of every file's name: changes when the tables mean something else.
FORMAT = 7
# Data type and shape of each array in a file: T and S ids of the teacher and the student,
# n edges of three numbers, p pairs.
_SHAPES = {
    "first_student_token": (np.int32, "T"),
    "trie_edges": (np.int64, "n3"),
    "extension_rate": (np.float32, "T"),
    "first_teacher_token": (np.int32, "S"),
    "first_pairs": (np.int64, "p"),
}


_NAME = re.compile(r"v\d+-(v\d+-[0-9a-f]{64})-v\d+-[0-9a-f]{64}(?:-[0-9a-f]{16,64})?\.npz")


def student_of(path: Path) -> str | None:
    """The student's fingerprint of a file of tables; None for any other file."""
    found = _NAME.fullmatch(path.name)
    return None if found is None else found[1]


class TableCache:
    """Builds the tables of each pair once. Thread-safe.

    Args:
        folder: where tables are kept; None keeps them in memory only.
        max_pairs: pairs in memory; the least recently used one is dropped first.
    """

    def __init__(self, folder: Path | None, max_pairs: int = 16) -> None:
        self._folder = folder
        self._max_pairs = max_pairs
        self._pairs: OrderedDict[tuple[str, str], tuple[Any, PairTables]] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, student: Vocabulary, teacher: Vocabulary) -> PairTables:
        """The tables of a pair; built when neither memory nor disk has them."""
        key = (student.hash, teacher.hash)
        roles = (student.kind, student.roles, teacher.kind, teacher.roles)
        with self._lock:
            known = self._pairs.pop(key, None)
            if known is None or known[0] != roles:
                pair = as_a_pair(student, teacher)
                known = roles, PairTables(*pair, self._static(*pair))
            self._pairs[key] = known
            while len(self._pairs) > self._max_pairs:
                self._pairs.popitem(last=False)
            return known[1]

    def _static(self, student: Vocabulary, teacher: Vocabulary) -> StaticTables:
        if self._folder is None:
            return build_static(student, teacher)
        # Not all of it is in the fingerprint: which tokens are spelt depends on the roles that
        # a run gives, what is special on the file's flags, and the kind on its decoder.
        sides = [(v.kind, sorted(v.spelt), sorted(v.specials)) for v in (student, teacher)]
        digest = hashlib.sha256(repr(sides).encode()).hexdigest()
        path = self._folder / f"v{FORMAT}-{student.hash}-{teacher.hash}-{digest}.npz"
        loaded = _load(path, student, teacher)
        if loaded is None:
            loaded = build_static(student, teacher)
            _save(path, loaded)
        return loaded


def _load(path: Path, student: Vocabulary, teacher: Vocabulary) -> StaticTables | None:
    """What the file holds; None when there is no file, or it is damaged."""
    try:
        with np.load(path, allow_pickle=False) as file:
            tables = StaticTables(**{name: file[name] for name in _SHAPES})
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None
    sizes = {
        "T": teacher.size,
        "S": student.size,
        "n": len(tables.trie_edges),
        "3": 3,
        "p": len(tables.first_pairs),
    }
    for name, (dtype, shape) in _SHAPES.items():
        array = getattr(tables, name)
        if array.dtype != dtype or array.shape != tuple(sizes[size] for size in shape):
            return None
    ids = (tables.first_student_token, student.size), (tables.first_teacher_token, teacher.size)
    in_range = all(array.max(initial=-1) < size for array, size in ids)
    in_range &= bool(tables.trie_edges[:, 1].max(initial=0) < teacher.size)
    return tables if in_range else None


def _save(path: Path, tables: StaticTables) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(path, mode=0o600) as file:
        np.savez(file, **{name: getattr(tables, name) for name in _SHAPES})
