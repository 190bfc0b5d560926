"""A rollout's rows, from the teacher's tokens to the student's.

plan = Realigner.plan(student_ids)          # what to ask the teacher
rows = teacher_rows(plan.teacher_ids, ...)  # its answer
Realigner.carry_over(plan, positions, rows, ...)
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from teacher_proto.types import Float32, Int32, PositionClass, UInt8

from teacher_server.realign.certify import Certified, certify
from teacher_server.realign.layout import Layout, lay_out
from teacher_server.realign.rows import Float64, TeacherRows
from teacher_server.realign.tables import PairTables
from teacher_server.realign.walk import Walked, Walker

Int64 = NDArray[np.int64]
# Tokens, on the longer side, of a chunk whose inner positions are still told apart.
MAX_CHUNK_TOKENS = 6
# Kept mass below which a position inside a teacher token says too little.
LEAST_KEPT = 1e-3


@dataclass(frozen=True)
class CarriedRows:
    """n rows in student ids; C chunks of the whole rollout.

    Attributes:
        certified: masked rows have no ids there.
        position_class: uint8 [n], values of PositionClass.
        chunk_index: int32 [n].
        chunk_log_likelihood: float32 [C], nats.
        walked: what the rows came from.
    """

    certified: Certified
    position_class: UInt8
    chunk_index: Int32
    chunk_log_likelihood: Float32
    walked: Walked


class Realigner:
    """Carries rollouts of one pair of tokenizers over. Not for several threads at once."""

    def __init__(self, tables: PairTables) -> None:
        self.tables = tables
        self._walker = Walker(tables)

    def plan(self, student_ids: Int32) -> Layout:
        """The rollout in both tokenizers; its ``teacher_ids`` are what the teacher reads.

        Raises:
            ValueError: the teacher has no tokens for these bytes.
        """
        return lay_out(student_ids, self.tables)

    def carry_over(
        self,
        layout: Layout,
        positions: Int64,
        rows: TeacherRows,
        *,
        top_k: int,
        limit: int | None = None,
    ) -> CarriedRows:
        """Rows of the student tokens at ``positions`` (int64 [n], ascending)."""
        walked = self._walker.walk(layout, positions, rows)
        sampled = layout.student_ids[positions].astype(np.int64)
        most = self.tables.student.size if limit is None else limit
        certified = certify(walked, sampled, top_k, most, self.tables)
        classes = self._classes(layout, positions, walked, certified)
        masked = classes == PositionClass.MASKED
        return CarriedRows(
            certified=_without(certified, masked),
            position_class=classes,
            chunk_index=layout.chunk[positions].astype(np.int32),
            chunk_log_likelihood=chunk_log_likelihoods(layout, rows),
            walked=walked,
        )

    def _classes(
        self, layout: Layout, positions: Int64, walked: Walked, certified: Certified
    ) -> UInt8:
        offsets = layout.student_offsets[positions]
        at = np.searchsorted(layout.teacher_offsets, offsets)
        aligned = layout.teacher_offsets[at] == offsets
        classes = np.where(aligned, PositionClass.ALIGNED, PositionClass.MID)
        classes[layout.special[positions]] = PositionClass.SPECIAL
        masked = layout.bad[positions] | ~layout.canonical[positions]
        masked |= layout.chunk_tokens[layout.chunk[positions]] > MAX_CHUNK_TOKENS
        masked |= ~aligned & (walked.total < LEAST_KEPT)
        masked |= certified.doubtful | (certified.counts < min(2, certified.ids.shape[1]))
        classes[masked] = PositionClass.MASKED
        return classes.astype(np.uint8)


def chunk_log_likelihoods(layout: Layout, rows: TeacherRows) -> Float32:
    """float32 [C]: the chain rule over each chunk's teacher tokens, nats."""
    return np.diff(rows.before[layout.chunk_teacher]).astype(np.float32)


def _without(certified: Certified, masked: NDArray[np.bool_]) -> Certified:
    """The same with nothing in the masked rows."""
    keep: Float64 = np.where(masked, 0.0, 1.0)
    return Certified(
        ids=np.where(masked[:, None], -1, certified.ids).astype(np.int32),
        log_probs=np.where(masked[:, None], 0.0, certified.log_probs).astype(np.float32),
        counts=np.where(masked, 0, certified.counts).astype(np.int32),
        sampled=np.where(masked, -np.inf, certified.sampled),
        doubtful=certified.doubtful,
        coverage=certified.coverage * keep,
        open_mass=certified.open_mass,
        lost_mass=certified.lost_mass,
    )
