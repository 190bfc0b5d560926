"""From which rows a position's walk starts, and with what weight.

A row stands AT a position, where a teacher token ends there: every token of the row counts.
Or it stands BEFORE the position: then only tokens count that begin with the bytes between
the row and the position, which are already there, and reach across. Weights are relative
to the last row of the rollout's own encoding before or at the position.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from teacher_server.realign.walk.rows import Float64

Int64 = NDArray[np.int64]
# Above every row: makes one number of a position and a row.
_SPAN = 1 << 32


@dataclass(frozen=True)
class Starts:
    """Arrays of equal length.

    Attributes:
        position: place among the positions asked for.
        row: the teacher's row.
        weight: natural logarithm of its weight.
        skip: bytes between the row and the position.
        low, high: ranks of the teacher tokens that begin with these bytes and are longer.
    """

    position: Int64
    row: Int64
    weight: Float64
    skip: Int64
    low: Int64
    high: Int64


@dataclass(frozen=True)
class MissingStarts:
    """Pasts that reach a position over a row that the teacher was not asked for; arrays of
    equal length.

    Attributes:
        position: place among the positions asked for.
        row, token: the row after this row and teacher token is the missing one; row NO_ROW
            where that would not tell how much the past has.
        then: the token with which the past continues after ``token``; -1 where it ends.
        reach_low, reach_high: ranks of the teacher tokens with which the past reaches across
            the position; equal where it ends there, or continues with ``then``.
        mass: of the past up to ``token``.
        low, high: ranks of the student tokens that may come of it.
    """

    position: Int64
    row: Int64
    token: Int64
    then: Int64
    reach_low: Int64
    reach_high: Int64
    mass: Float64
    low: Int64
    high: Int64


@dataclass(frozen=True)
class FoundStarts:
    """The starts of n positions: rows before them, rows at them, and rows that are missing."""

    before: Starts
    at: Starts
    missing: MissingStarts


class _Columns:
    """A table that is collected row by row, or many rows at a time."""

    def __init__(self, width: int) -> None:
        self._width = width
        self._rows: list[tuple[float, ...]] = []
        self._many: list[list[np.ndarray]] = []

    def add(self, *row: float) -> None:
        self._rows.append(row)

    def add_all(self, *columns: np.ndarray) -> None:
        self._many.append(list(columns))

    def columns(self) -> list[np.ndarray]:
        alone = zip(*self._rows, strict=True) if self._rows else [()] * self._width
        columns = [np.array(values) for values in alone]
        return [np.concatenate(parts) for parts in zip(columns, *self._many, strict=True)]


class StartCollector:
    """The starts of one rollout's positions, as they are found: in the order of the attributes
    of ``Starts`` and ``MissingStarts``.

    Attributes:
        begun: (position, row, token), ways before which an added token has begun.
    """

    def __init__(self) -> None:
        self.begun: set[tuple[int, int, int]] = set()
        self.before, self.at, self.missing = _Columns(6), _Columns(6), _Columns(9)

    def found(self) -> FoundStarts:
        return FoundStarts(_starts(self.before), _starts(self.at), _missing(self.missing))


def _starts(columns: _Columns) -> Starts:
    """The starts, each row of a position once, in whichever ways it was found."""
    position, row, weight, skip, low, high = columns.columns()
    whole = [column.astype(np.int64) for column in (position, row, skip, low, high)]
    _, first = np.unique(whole[0] * _SPAN + whole[1], return_index=True)
    first.sort()
    at, of, *rest = (column[first] for column in whole)
    return Starts(at, of, weight.astype(np.float64)[first], *rest)


def _missing(columns: _Columns) -> MissingStarts:
    position, row, token, then, reach_low, reach_high, mass, low, high = columns.columns()
    position, row, token, then, reach_low, reach_high, low, high = (
        column.astype(np.int64)
        for column in (position, row, token, then, reach_low, reach_high, low, high)
    )
    mass = mass.astype(np.float64)
    return MissingStarts(position, row, token, then, reach_low, reach_high, mass, low, high)
