"""The teacher's frozen rows on disk: requested once, used by every evaluation.

One float32 .npy file [R, V] beside a JSON file that names their teacher and positions.
The JSON file is written last, so that incomplete rows are never used.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from teacher_proto.program.files import write_text

from student_trainer.evaluation.rows import TEMPERATURE, FullRows, Selection, full_rows
from student_trainer.teacher.left_out import is_left_out
from student_trainer.teacher.link import TeacherLink
from student_trainer.teacher.requests import prompts_digest

ROWS = "teacher_rows.npy"
OWNER = "teacher_rows.json"


def cached_rows(
    teacher: TeacherLink, pieces: Sequence[Selection], ids: int, digest: str, directory: Path
) -> Iterator[FullRows]:
    """As ``full_rows``, but read from ``directory`` when it has exactly these rows.

    Rows of another teacher, after other prompts, of other positions or of another vocabulary
    are requested again.

    Args:
        digest: of the positions (``FrozenPositions.digest``).
    """
    count = sum(len(piece.rows) for piece in pieces)
    owner = {
        "teacher_identity": teacher.info.identity.digest,
        "positions": digest,
        "rows": count,
        "ids": ids,
        "prompts": prompts_digest([teacher.wire_prompt(piece.prompt) for piece in pieces]),
    }
    table_path, owner_path = directory / ROWS, directory / OWNER
    if _owner(owner_path) == owner and table_path.exists():
        _ask_one(teacher, pieces)
        table = np.load(table_path, mmap_mode="r", allow_pickle=False)
        start = 0
        for piece in pieces:
            kept = np.array(table[start : start + len(piece.rows)])
            start += len(piece.rows)
            yield FullRows(kept, np.logical_and.reduce(np.isfinite(kept), axis=1))
        return
    directory.mkdir(parents=True, exist_ok=True)
    owner_path.unlink(missing_ok=True)
    out = np.lib.format.open_memmap(table_path, mode="w+", dtype=np.float32, shape=(count, ids))
    start = 0
    for piece, block in zip(pieces, full_rows(teacher, pieces, ids), strict=True):
        out[start : start + len(piece.rows)] = block.log_probs
        start += len(piece.rows)
        yield block
    out.flush()
    write_text(owner_path, json.dumps(owner) + "\n")


def _ask_one(teacher: TeacherLink, pieces: Sequence[Selection]) -> None:
    """Makes one small request, which fails unless the teacher is still the same. Where it is
    refused, whichever teacher it is, the next piece is asked for."""
    first = np.zeros(1, np.int32)
    for piece in pieces:
        found = teacher.score_rows(piece.prompt, piece.response[:1], first, 1, TEMPERATURE)
        if not is_left_out(found):
            return


def _owner(path: Path) -> object:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
