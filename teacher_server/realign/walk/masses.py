"""Masses by position: what the walk has settled and what it has left open."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from teacher_server.realign.walk.rows import Float64

Int64 = NDArray[np.int64]
OpenPart = tuple[Int64, Int64, Float64, Int64, Int64, Int64, Int64]


@dataclass(frozen=True)
class Entries:
    """Masses by position, one entry per path.

    Settled: ``token`` is the student's id. Open: ``row`` and ``token`` are the path's
    last step on the teacher's side; ``low`` and ``high`` the ranks of the student
    tokens that begin with the path's bytes; ``first``: the teacher token that the path
    begins with at the position, when only student tokens whose own teacher encoding
    begins with it can come of it; else -1.
    """

    position: Int64
    token: Int64
    mass: Float64
    row: Int64
    low: Int64
    high: Int64
    first: Int64


@dataclass(frozen=True)
class Walked:
    """Masses of n positions, relative to each other within a position.

    Attributes:
        settled, open: entries; a position may have several of one token.
        lost: float64 [n], what no student token can express.
        total: float64 [n], what agrees with the student's tokens so far.
        tail: float64 [n], what lies below the best ids of the rows.
        floor: float64 [n], the most that one id below the best can have.
        wanted: int64, ascending: teacher tokens whose context-free rows would tell more.
    """

    settled: Entries
    open: Entries
    lost: Float64
    total: Float64
    tail: Float64
    floor: Float64
    wanted: Int64


def places(which: NDArray[np.bool_]) -> tuple[Int64, Int64]:
    """Of a bool [n, w]: the lines of what is set, and its places for ``take`` and ``put``.

    Several times faster than to index with two dimensions, or with the array itself.
    """
    place = np.flatnonzero(which)
    return place // which.shape[1], place


class Collected:
    def __init__(self, count: int) -> None:
        self.settled: list[tuple[Int64, Int64, Float64]] = []
        self.open: list[OpenPart] = []
        self.wanted: list[Int64] = [np.zeros(0, np.int64)]
        self.lost = np.zeros(count)
        self.total = np.zeros(count)

    def settle(self, position: Int64, token: Int64, mass: Float64) -> None:
        self.settled.append((position, token, mass))

    def want(self, which: NDArray[np.bool_], token: Int64) -> None:
        self.wanted.append(token[which])

    def leave_open(
        self,
        position: Int64,
        token: Int64,
        mass: Float64,
        row: Int64,
        interval: Int64,
        first: Int64 | None = None,
    ) -> None:
        if first is None:
            first = np.full(len(position), -1)
        part = position, token, mass, row, interval[:, 0], interval[:, 1], first
        self.open.append(part)


def entries(parts: list[tuple[Int64, Int64, Float64]]) -> Entries:
    position, token, mass = (np.concatenate(column) for column in zip(*parts, strict=True))
    none = np.full(len(position), -1)
    return Entries(position, token, mass, none, none, none, none)


def open_entries(parts: list[OpenPart]) -> Entries:
    position, token, mass, row, low, high, first = (
        np.concatenate(column) for column in zip(*parts, strict=True)
    )
    some = mass > 0
    return Entries(
        position[some], token[some], mass[some], row[some], low[some], high[some], first[some]
    )
