"""Masses by position: what a walk has settled, what it has left open, what is lost.

All masses of a position are relative to one another, not to 1: they are divided by the
position's ``total`` in the end.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from teacher_proto.types import Bool

from teacher_server.realign.walk.rows import Float64

Int64 = NDArray[np.int64]
SettledPart = tuple[Int64, Int64, Float64, Int64]
OpenPart = tuple[Int64, Int64, Float64, Int64, Int64, Int64, Int64]
# An entry with a smaller part of its row's or path's mass is not looked at one by one:
# it stays open (inside a teacher token it does not count).
SIGNIFICANT = 1e-4


@dataclass(frozen=True)
class Settled:
    """Settled masses by position; arrays of equal length.

    Attributes:
        position: place among the positions asked for.
        token: the student's.
        mass: of one path, or of several.
        parts: how many paths have this mass together.
    """

    position: Int64
    token: Int64
    mass: Float64
    parts: Int64


@dataclass(frozen=True)
class Entries:
    """Open masses by position, one entry for each path; arrays of equal length.

    Attributes:
        position: place among the positions asked for.
        token: the path's last teacher token.
        mass: of the path.
        row: the row that ``token`` is read from; the row after both would settle more. -1
            where there is no such row to ask for.
        low, high: ranks of the student tokens that begin with the path's bytes.
        first: the teacher token that the path begins with at the position, where only student
            tokens can come of it whose own teacher encoding begins with that token; else -1.
    """

    position: Int64
    token: Int64
    mass: Float64
    row: Int64
    low: Int64
    high: Int64
    first: Int64


@dataclass(frozen=True)
class WalkResult:
    """Masses of n positions.

    Attributes:
        settled, open: a position may have several entries with one token.
        lost: float64 [n], what no student token can express.
        total: float64 [n], what agrees with the student's tokens so far.
        tail: float64 [n], what lies below the best ids of the rows, and of ``behind_space`` listed
            ids of little mass too.
        floor: float64 [n], the most that one id below the best can have.
        listed: int64 [n], how many ids are listed in the row that lists most, without what wide
            rows list besides their best.
        wide: bool [n], all rows are wide.
        behind_space: bool [n], a row counts that stands at the position but for one space.
        wanted: int64, ascending: teacher tokens whose context-free rows would settle more.
    """

    settled: Settled
    open: Entries
    lost: Float64
    total: Float64
    tail: Float64
    floor: Float64
    listed: Int64
    wide: Bool
    behind_space: Bool
    wanted: Int64


def true_places(which: Bool) -> tuple[Int64, Int64]:
    """Of a bool [n, w] array: the lines of its true cells, and their places in the flattened
    array, for ``take`` and ``put``.

    Several times faster than to index with two dimensions, or with the array itself.
    """
    place = np.flatnonzero(which)
    return place // which.shape[1], place


class MassLedger:
    """What a walk has found so far for n positions.

    Attributes:
        lost, total: float64 [n], as in ``WalkResult``.
        below: float64 [n], what is not read of rows that stand at their positions but for one
            space, which the teacher has written already: what lies below their best ids, and
            listed ids of little mass.
        most_below: float64 [n], the most that one id of it can have.
        listed_there: int64 [n], how many ids such a row lists.
    """

    def __init__(self, count: int) -> None:
        self.lost = np.zeros(count)
        self.total = np.zeros(count)
        self.below = np.zeros(count)
        self.most_below = np.zeros(count)
        self.listed_there = np.zeros(count, np.int64)
        self._settled: list[SettledPart] = []
        self._open: list[OpenPart] = []

    def settle(
        self, position: Int64, token: Int64, mass: Float64, parts: Int64 | None = None
    ) -> None:
        """Gives mass to student tokens; arguments as in ``Settled``, ``parts`` None for one path
        each."""
        if parts is None:
            parts = np.ones(len(position), np.int64)
        self._settled.append((position, token, mass, parts))

    def leave_open(
        self,
        position: Int64,
        token: Int64,
        mass: Float64,
        row: Int64,
        interval: Int64,
        first: Int64 | None = None,
    ) -> None:
        """Leaves the mass of paths open; arguments as in ``Entries``, ``interval`` int64
        [n, 2] being (low, high)."""
        if first is None:
            first = np.full(len(position), -1)
        part = position, token, mass, row, interval[:, 0], interval[:, 1], first
        self._open.append(part)

    def lose(self, position: Int64, mass: Float64) -> None:
        """Counts mass that no student token can express."""
        np.add.at(self.lost, position, mass)

    def leave_below(self, position: Int64, mass: Float64, most: Float64, listed: Int64) -> None:
        """Counts ``below``, of rows that list ``listed`` ids; ``most``: what one id of it has at
        most."""
        np.add.at(self.below, position, mass)
        np.maximum.at(self.most_below, position, most)
        np.maximum.at(self.listed_there, position, listed)

    def agree(self, position: Int64, mass: Float64) -> None:
        """Counts mass that agrees with the student's tokens so far."""
        np.add.at(self.total, position, mass)

    def rule_out(self, position: Int64, mass: Float64) -> None:
        """Takes mass back that was counted by ``agree``, and does not agree after all."""
        np.subtract.at(self.total, position, mass)

    def settled(self) -> Settled:
        return Settled(*(np.concatenate(column) for column in zip(*self._settled, strict=True)))

    def open(self) -> Entries:
        """Without paths of mass 0."""
        columns = [np.concatenate(column) for column in zip(*self._open, strict=True)]
        position, token, mass, row, low, high, first = columns
        some = mass > 0
        return Entries(
            position[some], token[some], mass[some], row[some], low[some], high[some], first[some]
        )
