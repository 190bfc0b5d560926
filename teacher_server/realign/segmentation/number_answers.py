"""What each number gives the student at a place where a wide row is read.

A wide row has up to a thousand numbers of little mass each, and the same numbers stand in every
wide row. What becomes of a number of little mass depends on the place where it is written alone,
never on the rollout: it is asked once for each place, of all numbers together, and then masses
are summed by it. A number that has a row after it, or for which a context-free row may be asked
or counts, is a path of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from teacher_proto.types import Bool

from teacher_server.realign.pair.tables import PairTables
from teacher_server.realign.segmentation.canonical import CONTRADICTS
from teacher_server.realign.segmentation.extension_shares import LEAST_ASKED

Float64 = NDArray[np.float64]
Int64 = NDArray[np.int64]
# Answers kept, of all numbers at all places; when there are more, all are forgotten.
MAX_ANSWERS = 1 << 23
# Instead of the student's token: the number is ruled out, or lost, or cannot join the path before
# it; or it is a path of its own.
RULED_OUT = CONTRADICTS
LOST = -2
APART = -3
ALONE = -4
# Groups that every place has, whether or not a number is in them.
_ALONE, _APART = 0, 1


class Sums(NamedTuple):
    """What the numbers of n wide rows have together, k sums of at least one number.

    Attributes:
        line: int64 [k], place among the rows.
        answer: int64 [k], the student's token, or RULED_OUT, LOST or APART.
        mass: float64 [k].
        parts: int64 [k], how many numbers have it.
    """

    line: Int64
    answer: Int64
    mass: Float64
    parts: Int64

    def some(self, which: Bool) -> Sums:
        """Those where ``which`` [k] is true."""
        return Sums(self.line[which], self.answer[which], self.mass[which], self.parts[which])


class Single(NamedTuple):
    """Numbers that are paths of their own: line, place among n wide rows; teacher token; mass."""

    line: Int64
    token: Int64
    mass: Float64


_NOTHING: Int64 = np.zeros(0, np.int64)
NO_SUMS = Sums(_NOTHING, _NOTHING, np.zeros(0), _NOTHING)
NO_SINGLE = Single(_NOTHING, _NOTHING, np.zeros(0))


class NumberAnswers:
    """The answers of one pair's ``PairTables.wide_ids``, E of them, by the place where they are
    written. A place is known by a key, anything that decides what they give there."""

    def __init__(self, tables: PairTables) -> None:
        self.ids: Int64 = tables.wide_ids.astype(np.int64)
        ranks = tables.teacher.rank[self.ids]
        self._by_rank = np.argsort(ranks, kind="stable")
        self._ranks = ranks[self._by_rank]
        self._generation = -1
        self.clear()

    def clear(self) -> None:
        """Forgets all places."""
        self._places: dict[Hashable, int] = {}
        # Of each place, the group of each number, and the answer of each group.
        self._groups = np.zeros((0, len(self.ids)), np.int16)
        self._answers = np.zeros((0, 2), np.int64)

    def trim(self, generation: int) -> None:
        """Forgets all when there are too many, or the student's states have other numbers than
        before; between rollouts only."""
        if generation != self._generation or self._size() > MAX_ANSWERS:
            self.clear()
        self._generation = generation

    def _size(self) -> int:
        """Of both tables, in entries of ``_groups``: those of ``_answers`` are four times as
        large."""
        return int(self._groups.size + 4 * self._answers.size)

    def within(self, low: Int64, high: Int64) -> tuple[Int64, Int64]:
        """(line, column), int64 [k] each: of n ranges of ranks [low, high) the numbers in each,
        as columns of ``WideEntries.log_probs``."""
        begin, end = np.searchsorted(self._ranks, low), np.searchsorted(self._ranks, high)
        count = np.maximum(end - begin, 0)
        line = np.repeat(np.arange(len(low)), count)
        place = np.arange(len(line)) + np.repeat(begin - (np.cumsum(count) - count), count)
        return line, self._by_rank.take(place)

    def places(self, keys: Sequence[Hashable], ask: Callable[[int], Int64]) -> Int64:
        """int64 [n]: the places with these keys.

        Args:
            ask: of the index of a key that is new, int64 [E]: the student's token of each
                number of less than LEAST_ASKED that has no row after it, or RULED_OUT, LOST,
                APART or ALONE.
        """
        for index, key in enumerate(keys):
            if key not in self._places:
                self._add(ask(index))
                self._places[key] = len(self._places)
        return np.array([self._places[key] for key in keys], np.int64)

    def cells_of(self, line: Int64, token: Int64) -> Int64:
        """int64: of teacher tokens [n] those that are numbers, as cells of an array of masses
        [.., E]."""
        column = np.searchsorted(self.ids, token)
        known = np.flatnonzero(self.ids.take(column, mode="clip") == token)
        cells: Int64 = line[known] * len(self.ids) + column[known]
        return cells

    def _add(self, answers: Int64) -> None:
        known = np.unique(answers)
        known = np.concatenate([[ALONE, APART], known[(known != ALONE) & (known != APART)]])
        order = np.argsort(known)
        place, width = len(self._places), self._answers.shape[1]
        if place == len(self._groups):
            more = max(64, place)
            self._groups = np.pad(self._groups, ((0, more), (0, 0)))
            self._answers = np.pad(self._answers, ((0, more), (0, 0)), constant_values=ALONE)
        if len(known) > width:
            wider = ((0, 0), (0, len(known) - width))
            self._answers = np.pad(self._answers, wider, constant_values=ALONE)
        self._groups[place] = order[np.searchsorted(known, answers, sorter=order)]
        self._answers[place, : len(known)] = known

    def sums(self, place: Int64, mass: Float64, children: Int64) -> tuple[Sums, Single]:
        """What numbers give at places, and those that are paths of their own.

        Args:
            place: int64 [n].
            mass: float64 [n, E], of the numbers at each; what is a path of its own is set to 0.
            children: int64, cells of ``mass`` whose number has a row after it.
        """
        groups = self._groups.take(place, 0)
        single = np.flatnonzero((mass >= LEAST_ASKED) | (groups == _ALONE))
        if len(children):
            single = np.union1d(single, children)
        single = single[(groups.take(single) != _APART) & (mass.take(single) > 0)]
        line, column = np.divmod(single, len(self.ids))
        alone = Single(line, self.ids[column], mass.take(single))
        mass.put(single, 0.0)
        width = self._answers.shape[1]
        begin = np.arange(len(place))[:, None] * width
        group = np.add(groups, begin, dtype=np.int64).reshape(-1)
        every = mass.reshape(-1)
        whole = np.bincount(group, every, len(place) * width)
        parts = np.bincount(group, every > 0, len(place) * width)
        which = np.flatnonzero(parts)
        line, column = np.divmod(which, width)
        answer = self._answers[place[line], column]
        of_sums = whole[which].astype(np.float64), parts[which].astype(np.int64)
        return Sums(line, answer, *of_sums), alone
