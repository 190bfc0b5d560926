"""The walk: each row's mass goes to the student token that its path begins with.

For every position asked for, the walk reads the rows it starts from (``starts``): those at
the position (``at_position``) and those before it whose tokens reach across
(``before_position``). Mass that settles a student token is booked in the ledger at once;
the rest are paths, which are followed over the rows after them (``beyond_path``) until
they settle or no row is left, and what is then left of them stays open.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from teacher_proto.types import Bool

from teacher_server.realign.pair.layout import Layout
from teacher_server.realign.pair.tables import PairTables
from teacher_server.realign.segmentation.kinds import TokenKinds
from teacher_server.realign.segmentation.number_answers import NumberAnswers
from teacher_server.realign.segmentation.pair_segmentation import PairSegmentation
from teacher_server.realign.walk.at_position import read_rows_at
from teacher_server.realign.walk.before_position import leave_missing_open, read_rows_before
from teacher_server.realign.walk.beyond_path import read_rows_beyond
from teacher_server.realign.walk.context_free import ContextFreeRows
from teacher_server.realign.walk.extensions import Extensions
from teacher_server.realign.walk.masses import MassLedger, WalkResult
from teacher_server.realign.walk.paths import WalkContext
from teacher_server.realign.walk.rows import NO_ROW, Float64, TeacherRows
from teacher_server.realign.walk.start_finder import StartFinder
from teacher_server.realign.walk.starts import FoundStarts, Starts

Int64 = NDArray[np.int64]


class Walker:
    """Walks rollouts of one pair; what it has learnt about the pair is kept between them."""

    def __init__(self, tables: PairTables) -> None:
        self.pair = PairSegmentation(tables)
        self._kinds = TokenKinds(tables)
        self._starts = StartFinder(self.pair)
        self._numbers = NumberAnswers(tables)
        self._depth = tables.walk_depth

    def walk(
        self,
        layout: Layout,
        positions: Int64,
        rows: TeacherRows,
        context_free: ContextFreeRows | None,
    ) -> WalkResult:
        """The masses of student tokens at ``positions``, int64 [n].

        Args:
            context_free: of this teacher and temperature; None to go without.
        """
        self.pair.states.trim()
        self._numbers.trim(self.pair.states.generation)
        initial = self.pair.states.initial(layout, positions)
        starts = self._starts.find(layout, positions, initial, rows)
        ledger = MassLedger(len(positions))
        walk = WalkContext(
            kinds=self._kinds,
            pair=self.pair,
            rows=rows,
            initial=initial,
            extensions=Extensions(
                self._kinds, self.pair, layout, rows, layout.sync[positions], context_free
            ),
            ledger=ledger,
            numbers=self._numbers,
        )
        self._settle(walk, starts)
        tail, floor, listed, wide = _unlisted(starts.at, rows, ledger)
        return WalkResult(
            settled=ledger.settled(),
            open=ledger.open(),
            lost=ledger.lost,
            total=ledger.total,
            tail=tail,
            floor=floor,
            listed=listed,
            wide=wide,
            behind_space=ledger.below > 0,
            wanted=walk.extensions.wanted(),
        )

    def _settle(self, walk: WalkContext, starts: FoundStarts) -> None:
        """Reads rows until every path has its fate, or the walk has gone deep enough."""
        paths = read_rows_at(walk, starts.at)
        paths += read_rows_before(walk, starts.before)
        leave_missing_open(walk, starts.missing)
        for _ in range(self._depth):
            if not len(paths.mass):
                break
            paths = read_rows_beyond(walk, paths)
        ranges, none = self.pair.states.prefix_ranges(paths.state), np.full(len(paths.mass), NO_ROW)
        walk.ledger.leave_open(paths.position, none, paths.mass, none, ranges, paths.first)


def _unlisted(
    at: Starts, rows: TeacherRows, ledger: MassLedger
) -> tuple[Float64, Float64, Int64, Bool]:
    """(tail, floor, listed, wide) of ``WalkResult``: what the rows at the positions do not list."""
    tail, floor, weight = ledger.below.copy(), ledger.most_below.copy(), np.exp(at.weight)
    listed = ledger.listed_there.copy()
    np.add.at(tail, at.position, rows.tail[at.row] * weight)
    np.maximum.at(floor, at.position, np.exp(rows.floor[at.row]) * weight)
    np.maximum.at(listed, at.position, rows.listed[at.row])
    wide = ledger.below == 0
    np.logical_and.at(wide, at.position, rows.wide[at.row])
    return tail, np.minimum(floor, tail), listed, wide
