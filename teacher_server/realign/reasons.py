"""Why a row is masked, or coarse and not more, and the class that follows from it.

A row that is masked tells nothing. A coarse one tells its certified ids, and that everything
else has the rest of the mass; only who understands such rows gets them. Its values are exact but
for one factor: what is open may turn out to contradict the student's tokens so far, and then the
ids have up to 1 / (1 - open mass) times what the row says, and the rest has less.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from teacher_proto.program.mask_reasons import COARSE_REASONS
from teacher_proto.types import Bool, Float32, Level, MaskReason, PositionClass, UInt8

from teacher_server.realign.certify import Certified
from teacher_server.realign.pair.layout import Layout
from teacher_server.realign.pair.tables import MAX_UNSETTLED
from teacher_server.realign.walk.masses import WalkResult

Int64 = NDArray[np.int64]
# Tokens, on the side that has more, of a chunk whose inner positions are still realigned.
MAX_CHUNK_TOKENS = 6
# Agreeing mass below which a position inside a teacher token means too little.
LEAST_AGREEING = 1e-3
# Ids of the row that the reasons are found for where none is asked for, and the fewest that are
# looked at.
LEAST_IDS = 2
# A coarse row whose rest is larger tells too little.
LARGEST_REST = 0.9
# Reasons that are known without the teacher's rows.
STATIC_REASONS = (
    MaskReason.NOT_CANONICAL,
    MaskReason.UNREADABLE,
    MaskReason.NO_COUNTERPART,
    MaskReason.LONG_CHUNK,
)
# Class of a row that was gathered by id.
GATHERED = {Level.SAME: PositionClass.EXACT, Level.REMAP: PositionClass.REMAP}


def static_reasons(layout: Layout, positions: Int64) -> UInt8:
    """uint8 [n], values of MaskReason: what masks the rows at ``positions`` (int64 [n])
    whatever the teacher's rows hold; 0 where nothing does."""
    chunk_tokens = layout.chunk_tokens[layout.chunk[positions]]
    return _first_that_holds(
        [
            (MaskReason.NOT_CANONICAL, ~layout.canonical[positions]),
            (MaskReason.UNREADABLE, layout.unreadable[positions]),
            (MaskReason.NO_COUNTERPART, layout.without_counterpart[positions]),
            (MaskReason.LONG_CHUNK, chunk_tokens > MAX_CHUNK_TOKENS),
        ]
    )


def row_reasons(
    layout: Layout,
    positions: Int64,
    walked: WalkResult,
    certified: Certified,
    top_k: int,
) -> UInt8:
    """uint8 [n], values of MaskReason, of a rollout that was walked; 0 for rows without one.

    Args:
        certified: at least LEAST_IDS ids of each position.
        top_k: K, ids of a row; for 0 ids the row is judged as one of LEAST_IDS. Those of
            ``certified`` beyond it are not told, and count as the rest.
    """
    static = static_reasons(layout, positions)
    inside = _inside_teacher_token(layout, positions)
    told = _mass(certified.log_probs, certified.counts, top_k or LEAST_IDS)
    lone = (certified.counts == 1) & (told < 1 - MAX_UNSETTLED)
    found = _first_that_holds(
        [
            (MaskReason.LITTLE_AGREES, inside & (walked.total < LEAST_AGREEING)),
            (MaskReason.NOTHING_CERTIFIED, certified.counts < 1),
            (MaskReason.LARGE_REST, (lone | certified.doubtful) & (told < 1 - LARGEST_REST)),
            (MaskReason.ONE_CERTIFIED, lone),
            (MaskReason.DOUBTFUL, certified.doubtful),
        ]
    )
    return np.where(static != 0, static, found)


def row_classes(layout: Layout, positions: Int64, reasons: UInt8, coarse: bool) -> UInt8:
    """uint8 [n], values of PositionClass.

    Args:
        reasons: uint8 [n], of the rows.
        coarse: whether rows may be COARSE; else they are MASKED.
    """
    if layout.level is not Level.CROSS:
        return np.full(len(positions), GATHERED[layout.level], np.uint8)
    inside = _inside_teacher_token(layout, positions)
    classes = np.where(inside, PositionClass.MID, PositionClass.ALIGNED)
    classes[layout.special[positions]] = PositionClass.SPECIAL
    classes[reasons != 0] = PositionClass.MASKED
    if coarse:
        classes[np.isin(reasons, COARSE_REASONS)] = PositionClass.COARSE
    return classes.astype(np.uint8)


def _first_that_holds(conditions: Sequence[tuple[MaskReason, Bool]]) -> UInt8:
    reasons, holds = zip(*conditions, strict=True)
    return np.select(holds, [np.uint8(reason) for reason in reasons], np.uint8(0))


def _inside_teacher_token(layout: Layout, positions: Int64) -> Bool:
    """bool [n]: a teacher token begins before the position and ends after it."""
    offsets = layout.student_offsets[positions]
    at = np.searchsorted(layout.teacher_offsets, offsets)
    inside: Bool = layout.teacher_offsets[at] != offsets
    return inside


def _mass(log_probs: Float32, counts: NDArray[np.int32], width: int) -> NDArray[np.float64]:
    """float64 [n]: mass of the first ``width`` ids."""
    some = log_probs[:, :width].astype(np.float64)
    there = np.arange(some.shape[1]) < counts[:, None]
    mass: NDArray[np.float64] = np.where(there, np.exp(some), 0.0).sum(1)
    return mass
