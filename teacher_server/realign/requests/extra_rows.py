"""Which rows after paths a round of extra rows asks for, and when a request stops asking.

A row's *need* is the part of it that its student is not told: 1 where it is masked for what it
leaves open, elsewhere what its ids do not cover, and 0 where no further row could change it. A
path's *gain* is what the row after it would take off the needs, counted in rows: of each need
the path's share of the row's open mass. A masked row tells nothing before most of its open mass
is settled, so there a small share counts for less (MASKED_POWER): where a row has many small
paths, as before a number whose digits the teacher writes one by one, they gain little.

A round asks for the rows that gain most, up to what is left of the budget, and none below
LEAST_GAIN. The first round is a trial with FIRST_SHARE of the budget. What came of the gain that
it promised is what later rounds may promise, so that where nothing is gained a request stops
asking. All of it is decided by the request's own rows: whoever asked before changes nothing.
"""

from __future__ import annotations

from collections.abc import Container, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from teacher_proto.rows import required
from teacher_proto.types import MaskReason, PositionClass, Realignment

from teacher_server.realign.walk.masses import WalkResult

Float64 = NDArray[np.float64]
Int64 = NDArray[np.int64]
# Power of a path's share of a masked row's open mass. It and the next three were chosen on the
# benchmark's tuning texts.
MASKED_POWER = 1.5
# A row that is not masked needs at most this many times its open mass: of what its ids do not
# cover, the rest may be below its K best.
MOST_OF_OPEN = 2
# Rows: what the row after a path must gain at least.
LEAST_GAIN = 0.1
# Of a request's budget, what the first of several rounds may spend.
FIRST_SHARE = 1 / 4
# Why a row may be masked that further rows settle.
SETTLED_BY_ROWS = (
    MaskReason.NOTHING_CERTIFIED,
    MaskReason.ONE_CERTIFIED,
    MaskReason.DOUBTFUL,
    MaskReason.LARGE_REST,
)
# Gains that differ in later digits are mostly taken for equal, since an engine may round equal
# masses apart: not where a border between two rounded values lies between them.
GAIN_DIGITS = 3
_SPAN = 1 << 32


@dataclass(frozen=True)
class OpenPaths:
    """Paths of a continuation whose next rows could be asked for, by row, then by token.

    Attributes:
        row, token: int64 [p], the path ends with ``token``, which is read from ``row``.
        gain: float64 [p], of the row after it, in rows.
    """

    row: Int64
    token: Int64
    gain: Float64


NO_PATHS = OpenPaths(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0))


def needs_of(block: Realignment) -> Float64:
    """float64 [R], the need of each row."""
    masked = block.position_class == PositionClass.MASKED
    for_good = masked & ~np.isin(required(block.mask_reason, "mask_reason"), SETTLED_BY_ROWS)
    untold = np.minimum(1.0 - block.coverage, MOST_OF_OPEN * block.open_mass)
    return np.where(masked, np.where(for_good, 0.0, 1.0), untold.astype(np.float64))


def paths_of(
    walked: WalkResult, block: Realignment, least_open: float, known: Container[tuple[int, int]]
) -> OpenPaths:
    """The paths, left open at rows whose open mass is at least ``least_open``, that gain at
    least LEAST_GAIN.

    Args:
        walked: of the R rows of ``block``.
        known: the (row, token) whose next rows are there.
    """
    opened, count = walked.open, len(walked.total)
    mass = np.bincount(opened.position, opened.mass, count)
    asks = (needs_of(block) > 0) & (mass > 0) & (mass >= least_open * walked.total)
    there = asks[opened.position] & (opened.row >= 0) & (opened.token >= 0)
    steps, path = np.unique(opened.row[there] * _SPAN + opened.token[there], return_inverse=True)
    pairs, inverse = np.unique(path * count + opened.position[there], return_inverse=True)
    path, place = np.divmod(pairs, count)
    share = np.bincount(inverse, opened.mass[there], len(pairs)) / mass[place]
    share **= np.where(block.position_class[place] == PositionClass.MASKED, MASKED_POWER, 1.0)
    gains = np.bincount(path, needs_of(block)[place] * share, len(steps))
    gain: Float64 = np.round(gains, GAIN_DIGITS)
    row, token = np.divmod(steps, _SPAN)
    worth = gain >= LEAST_GAIN
    worth[worth] = [one not in known for one in zip(row[worth], token[worth], strict=True)]
    return OpenPaths(row[worth], token[worth], gain[worth])


@dataclass
class ExtraBudget:
    """What a request may still ask for.

    Attributes:
        rows: left to all of its rounds.
        rounds: left.
        most: rows of one round.
        yielded: the part of the gain that was promised which came, in the last round.
    """

    rows: int
    rounds: int
    most: int
    yielded: float = 1.0
    _first: bool = True
    _promised: float = 0.0
    _needed: float = 0.0

    def choose(
        self, needed: float, paths: Mapping[int, OpenPaths]
    ) -> list[tuple[int, tuple[int, int]]]:
        """The next round's (continuation, (row, token)), in this order; empty when there is
        none. What is left is less by them.

        Args:
            needed: the needs of all rows together, before the round.
            paths: by continuation, those that can be asked for.
        """
        if not paths:
            return []
        needed = round(needed, GAIN_DIGITS)
        if self._promised > 0:
            yielded = min(max((self._needed - needed) / self._promised, 0.0), 1.0)
            self.yielded = round(yielded, GAIN_DIGITS)
        which = np.concatenate([np.full(len(one.gain), index) for index, one in paths.items()])
        row = np.concatenate([one.row for one in paths.values()])
        token = np.concatenate([one.token for one in paths.values()])
        gain = np.concatenate([one.gain for one in paths.values()])
        best = np.argsort(-gain, kind="stable")[: self._size()]
        worth = np.round(gain[best] * self.yielded, GAIN_DIGITS) >= LEAST_GAIN
        best = np.sort(best[worth])
        self._first, self._needed, self._promised = False, needed, float(gain[best].sum())
        self.rows -= len(best)
        self.rounds -= 1
        steps = zip(row[best].tolist(), token[best].tolist(), strict=True)
        return list(zip(which[best].tolist(), steps, strict=True))

    def _size(self) -> int:
        """Rows of the next round, at most: a part of the first, equal parts of what is left."""
        if self._first and self.rounds > 1:
            part = int(self.rows * FIRST_SHARE)
        else:
            part = self.rows // max(self.rounds, 1)
        return min(max(part, 1), self.rows, self.most)
