"""Rows that are asked of the teacher beyond the rollout's own, to settle more mass.

A *context-free row* follows a single token that stands alone; a *path* is a row of the
rollout and a token that leaves the rollout there.
"""

from __future__ import annotations

from collections.abc import Sequence, Set

import numpy as np
from numpy.typing import NDArray
from teacher_proto.rows import Rows, required
from teacher_proto.types import Int32, SpecialRole

from teacher_server.realign.pair.vocabulary import Vocabulary
from teacher_server.realign.realigner import Realigner
from teacher_server.realign.requests.extra_rows import NO_PATHS, OpenPaths, needs_of, paths_of
from teacher_server.realign.requests.planned import PlannedContinuation
from teacher_server.realign.requests.realigned import RealignedContinuation
from teacher_server.realign.walk.context_free import ContextFreeRows
from teacher_server.realign.walk.rows import TeacherRows, with_extra_rows

Int64 = NDArray[np.int64]


def context_free_prompt(teacher: Vocabulary) -> Int32:
    """int32 [1]: what stands before a token of a context-free row.

    It is a beginning or an end of text, else the end of a line: a model's row after its
    very first token is like no other.
    """
    for role in (SpecialRole.BEGIN_OF_TEXT, SpecialRole.END_OF_TEXT):
        found = sorted(token for token, has in teacher.roles.items() if has is role)
        if found:
            return np.array(found[:1], np.int32)
    return teacher.encoder.encode(b"\n").ids[:1]


def learn_context_free(
    tokens: Int64,
    rows: Sequence[Rows | None],
    realigner: Realigner,
    context_free: ContextFreeRows,
) -> None:
    """Adds the rows after ``tokens`` [n]; one that is not finite leaves its token open."""
    finite = np.array([row is not None for row in rows], np.bool_)
    context_free.leave_open(tokens[~finite])
    found = [row for row in rows if row is not None]
    if not found:
        return
    support = required(Rows.concatenate(found).support, "support")
    log_probs = np.where(support.ids >= 0, support.log_probs.astype(np.float64), -np.inf)
    realigner.learn(context_free, tokens[finite], np.maximum(support.ids, 0), log_probs)


def open_paths(
    realigned: RealignedContinuation,
    least_open: float,
    longest: int,
    but: Set[tuple[int, int]],
) -> tuple[float, OpenPaths]:
    """(needs of the continuation's rows together, the paths whose next rows are not there).

    Args:
        least_open: open mass from which a row counts.
        longest: tokens of ``path_ids`` at most, which the teacher has room for.
        but: the (row, token) of paths that are not to be asked for.
    """
    walked, block = realigned.walked, realigned.scores.realignment
    if walked is None or block is None or realigned.rows is None:
        return 0.0, NO_PATHS
    needed = float(needs_of(block).sum())
    known = realigned.rows.extra_rows.keys() | but
    paths = paths_of(walked, block, least_open, known)
    rows, which = np.unique(paths.row, return_inverse=True)
    fits = np.array([_path_length(realigned.rows, row) <= longest for row in rows.tolist()], bool)
    there = fits[which]
    return needed, OpenPaths(paths.row[there], paths.token[there], paths.gain[there])


def _path_length(rows: TeacherRows, row: int) -> int:
    """Of ``path_ids``, for paths that end with a token from ``row``."""
    kept, tokens = rows.path(row)
    return kept + len(tokens) + 2


def path_ids(
    realigned: RealignedContinuation, planned: PlannedContinuation, path: tuple[int, int]
) -> Int32:
    """int32 [L]: the rollout up to where the path leaves it, the path, and one id more, which
    is never read: a row does not depend on its own token. It counts as a rollout's last token
    does, which is not read either: an engine wants room for a token after what it reads."""
    row, token = path
    kept, tokens = required(realigned.rows, "rows").path(row)
    return np.concatenate([planned.teacher_ids[:kept], [*tokens, token, 0]]).astype(np.int32)


def with_paths(
    realigned: RealignedContinuation, paths: list[tuple[int, int]], found: list[Rows | None]
) -> TeacherRows | None:
    """The continuation's rows and those after the paths that are finite; None when none is."""
    finite = [(path, rows) for path, rows in zip(paths, found, strict=True) if rows is not None]
    if not finite:
        return None
    support = required(Rows.concatenate([rows for _, rows in finite]).support, "support")
    return with_extra_rows(
        required(realigned.rows, "rows"),
        [path for path, _ in finite],
        support.ids,
        support.log_probs,
    )
