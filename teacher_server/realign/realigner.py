"""A rollout's rows, from the teacher's tokens to the student's: the way into this package.

layout = realigner.lay_out(student_ids)       # layout.teacher_ids is for the teacher
rows = teacher_rows(layout.teacher_ids, ...)  # its answer
realigned = realigner.realign(layout, positions, rows, top_k=K)
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from teacher_proto.types import Bool, Float32, Int32, Level, PositionClass, UInt8

from teacher_server.realign.certify import Certified, certify
from teacher_server.realign.pair.layout import Layout, lay_out
from teacher_server.realign.pair.tables import PairTables
from teacher_server.realign.reasons import LEAST_IDS, row_classes, row_reasons
from teacher_server.realign.remap import Remap
from teacher_server.realign.walk.context_free import ContextFreeRows
from teacher_server.realign.walk.masses import WalkResult
from teacher_server.realign.walk.rows import Float64, TeacherRows
from teacher_server.realign.walk.walker import Walker

Int64 = NDArray[np.int64]


@dataclass(frozen=True)
class RealignedRows:
    """n rows in student ids; C chunks of the whole rollout.

    Attributes:
        certified: the rows; masked ones have no ids there.
        position_class: uint8 [n], values of PositionClass.
        mask_reason: uint8 [n], values of MaskReason; 0 for rows that are neither masked nor
            coarse.
        chunk_index: int32 [n].
        chunk_log_likelihood: float32 [C], nats.
        walked: the masses the rows come from.
    """

    certified: Certified
    position_class: UInt8
    mask_reason: UInt8
    chunk_index: Int32
    chunk_log_likelihood: Float32
    walked: WalkResult


class Realigner:
    """Realigns rollouts of one pair of tokenizers. Not for several threads at once.

    Args:
        level: CROSS walks even where ids are equal; by default the pair's own level.
    """

    def __init__(self, tables: PairTables, level: Level | None = None) -> None:
        self.tables = tables
        self.level = tables.level if level is None else level
        self._remap = None if self.level is Level.CROSS else Remap(tables)

    @cached_property
    def _walker(self) -> Walker:
        return Walker(self.tables)

    def lay_out(self, student_ids: Int32) -> Layout:
        """The rollout in both tokenizers; its ``teacher_ids`` are what the teacher reads.

        Raises:
            ValueError: the teacher has no tokens for these bytes.
        """
        if self._remap is not None:
            layout = self._remap.lay_out(student_ids, self.level)
            if layout is not None:
                return layout
        return lay_out(student_ids, self.tables)

    def realign(
        self,
        layout: Layout,
        positions: Int64,
        rows: TeacherRows,
        *,
        top_k: int,
        more: int = 0,
        coarse: bool = False,
        limit: int | None = None,
        context_free: ContextFreeRows | None = None,
    ) -> RealignedRows:
        """The rows of the student's tokens at ``positions`` (int64 [n], ascending).

        Args:
            rows: the teacher's, of ``layout.teacher_ids``.
            top_k: K, ids of a row. A row of none has the class of one of two.
            more: ids of ``certified`` besides them, for whoever looks for others.
            coarse: whether rows may be COARSE; else these are MASKED.
            limit: only ids below it are returned; None: all of the student's.
            context_free: of this teacher and temperature; None to go without.
        """
        sampled = layout.student_ids[positions].astype(np.int64)
        most = self.tables.student.size if limit is None else limit
        width = max(top_k, LEAST_IDS) + more
        if layout.level is Level.CROSS:
            walked = self._walker.walk(layout, positions, rows, context_free)
            certified = certify(walked, sampled, width, most, self.tables)
            reasons = row_reasons(layout, positions, walked, certified, top_k)
        else:
            assert self._remap is not None
            walked = self._remap.walk(positions, rows)
            certified = self._remap.certify(walked, sampled, width, most)
            reasons = np.zeros(len(positions), np.uint8)
        classes = row_classes(layout, positions, reasons, coarse)
        masked = classes == PositionClass.MASKED
        return RealignedRows(
            certified=_without(certified, masked),
            position_class=classes,
            mask_reason=reasons,
            chunk_index=layout.chunk[positions].astype(np.int32),
            chunk_log_likelihood=chunk_log_likelihoods(layout, rows),
            walked=walked,
        )

    def learn(
        self, context_free: ContextFreeRows, tokens: Int64, ids: Int32, log_probs: Float64
    ) -> None:
        """Adds the context-free rows of ``tokens`` [n]: ids, log_probs [n, M]."""
        context_free.learn(tokens, ids.astype(np.int64), log_probs, self._walker.pair)


def chunk_log_likelihoods(layout: Layout, rows: TeacherRows) -> Float32:
    """float32 [C]: the log-likelihood of each chunk, nats: the sum over its teacher tokens."""
    return np.diff(rows.log_likelihood[layout.chunk_teacher]).astype(np.float32)


def _without(certified: Certified, masked: Bool) -> Certified:
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
