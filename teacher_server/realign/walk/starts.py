"""From which rows a position's walk starts, and with what weight.

A row stands AT a position, where a teacher token ends there: every token of the row counts.
Or it stands BEFORE the position: then only tokens count that begin with the bytes between
the row and the position, which are already there, and reach across. Weights are relative
to the last row of the rollout's own encoding before or at the position.

All of a position's starts lie between its sync point and the position. Where the rollout's
own encoding has no boundary at the position, or several spaces precede it, the teacher may
have cut that text in other ways: each such past is followed over the rows there are.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from teacher_server.realign.pair.layout import Layout
from teacher_server.realign.segmentation.pair_segmentation import PairSegmentation
from teacher_server.realign.segmentation.pasts import MAX_TEXTS, Past, TeacherPasts
from teacher_server.realign.segmentation.spaces import spaces_before
from teacher_server.realign.walk.rows import Float64, TeacherRows

Int64 = NDArray[np.int64]


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
        row, token: the row after this row and teacher token is the missing one.
        then: the token with which the past continues after ``token``; -1 where it ends.
        mass: of the past up to ``token``.
        low, high: ranks of the student tokens that may come of it.
    """

    position: Int64
    row: Int64
    token: Int64
    then: Int64
    mass: Float64
    low: Int64
    high: Int64


class _Positions(NamedTuple):
    """The positions asked for of one rollout, and where they stand in the teacher's encoding.

    Attributes:
        begin: int64 [n], offset.
        row: int64 [n], the first row of the rollout's own encoding at or after it.
        last: int64 [n], the last one at or before it.
        sync: int64 [n], the row at the sync point.
    """

    layout: Layout
    rows: TeacherRows
    begin: Int64
    row: Int64
    last: Int64
    sync: Int64

    def text_before(self, index: int) -> bytes:
        """The text between a position's sync point and the position."""
        start = self.layout.teacher_offsets[self.sync[index]]
        return self.layout.data[start : self.begin[index]]


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


class _Found:
    """The starts of one rollout's positions, as they are found."""

    def __init__(self) -> None:
        self.before, self.at, self.missing = _Columns(6), _Columns(6), _Columns(7)


class StartFinder:
    """Finds the starts of one pair's rollouts; what it looked up is kept between them."""

    def __init__(self, pair: PairSegmentation) -> None:
        self._tables = pair.tables
        self._pasts = TeacherPasts(pair)
        self._longer_ranges: dict[bytes, tuple[int, int]] = {}

    def starts(
        self, layout: Layout, positions: Int64, initial: Int64, rows: TeacherRows
    ) -> tuple[Starts, Starts, MissingStarts]:
        """(before, at, missing) for the student's positions, int64 [n]; ``initial`` are their
        initial states."""
        self._pasts.trim()
        if len(self._longer_ranges) > MAX_TEXTS:
            self._longer_ranges.clear()
        begin = layout.student_offsets[positions]
        row = np.searchsorted(layout.teacher_offsets, begin)
        aligned = layout.teacher_offsets[row] == begin
        last, sync = np.where(aligned, row, row - 1), layout.sync[positions]
        asked = _Positions(layout, rows, begin, row, last, sync)
        pasts: list[tuple[int, Past]] = []
        spaces = spaces_before(layout.data, begin)
        for index in np.flatnonzero(aligned & (row > sync) & spaces).tolist():
            own = layout.teacher_ids[sync[index] : row[index]].tolist()
            found = self._pasts.of_spaces(int(initial[index]), asked.text_before(index))
            aligned[index] = any(past.path == own for past in found)
            pasts += [(index, past) for past in found if past.path != own]
        known = {index for index, _ in pasts}
        inside = [one for one in np.flatnonzero(~aligned).tolist() if one not in known]
        texts = [asked.text_before(one) for one in inside]
        pasts += zip(inside, self._pasts.of_texts(texts), strict=True)
        pasts += [
            (index, past)
            for index, text in zip(inside, texts, strict=True)
            for past in self._pasts.of_begun(text)
        ]
        starts = _Found()
        self._add_own_rows(np.flatnonzero(aligned), asked, starts)
        begun = set(np.flatnonzero(aligned).tolist())
        for index, past in pasts:
            self._follow(past, index, asked, index not in begun, starts)
            begun.add(index)
        return _starts(starts.before), _starts(starts.at), _missing(starts.missing)

    def _add_own_rows(self, which: Int64, asked: _Positions, found: _Found) -> None:
        """The rollout's own rows for the positions ``which``, where one of its teacher tokens
        ends: the row there, and the rows before it up to the sync points."""
        row, sync, begin = asked.row[which], asked.sync[which], asked.begin[which]
        zeros = np.zeros(len(which), np.int64)
        found.at.add_all(which, row, np.zeros(len(which)), zeros, zeros, zeros)
        layout, rows = asked.layout, asked.rows
        counts = row - sync
        owner = np.repeat(np.arange(len(which)), counts)
        node = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts) + sync[owner]
        offsets = layout.teacher_offsets
        token = layout.teacher_ids[node].astype(np.int64)
        near = self._tables.longest_with_prefix[token] > begin[owner] - offsets[node]
        owner, node, token = owner[near], node[near], token[near]
        ranks = self._tables.longer_teacher_range[token]
        for index in np.flatnonzero(offsets[node + 1] != begin[owner]).tolist():
            data = layout.data[offsets[node[index]] : begin[owner[index]]]
            ranks[index] = self._longer_range(data)
        some = ranks[:, 0] < ranks[:, 1]
        owner, node, ranks = owner[some], node[some], ranks[some]
        weight = rows.log_likelihood[node] - rows.log_likelihood[row[owner]]
        skip = begin[owner] - offsets[node]
        found.before.add_all(which[owner], node, weight, skip, ranks[:, 0], ranks[:, 1])

    def _longer_range(self, data: bytes) -> tuple[int, int]:
        """``Vocabulary.longer_range`` of the teacher."""
        found = self._longer_ranges.get(data)
        if found is None:
            found = self._longer_ranges[data] = self._tables.teacher.longer_range(data)
        return found

    def _follow(
        self, past: Past, index: int, asked: _Positions, first: bool, found: _Found
    ) -> None:
        """Follows a past, which is encoded by itself, so that nothing depends on what follows;
        its rows exist only as far as they are the rollout's own or were asked for.

        Args:
            index: of the position.
            first: whether no other past of the position has been followed: the rollout's
                own rows before the position count once.
        """
        layout, rows = asked.layout, asked.rows
        row, end = int(asked.sync[index]), int(asked.begin[index])
        offset = int(layout.teacher_offsets[row])
        weight = float(rows.log_likelihood[row] - rows.log_likelihood[int(asked.last[index])])
        for token, then in zip(past.path, [*past.path[1:], -1][: len(past.path)], strict=True):
            if first or row >= len(rows.token_log_probs):
                low, high = self._longer_range(layout.data[offset:end])
                if low < high:
                    found.before.add(index, row, weight, end - offset, low, high)
            weight += rows.log_prob(row, token)
            after = rows.child(row, token)
            offset += self._tables.teacher.lengths_list[token]
            if after is None:
                found.missing.add(index, row, token, then, float(np.exp(weight)), *past.ranks)
                return
            row = after
        if past.begun:
            ranks = self._longer_range(layout.data[offset:end])
            found.before.add(index, row, weight, past.begun, *ranks)
        else:
            found.at.add(index, row, weight, 0, 0, 0)


def _starts(parts: _Columns) -> Starts:
    position, row, weight, skip, low, high = parts.columns()
    whole = [column.astype(np.int64) for column in (position, row, skip, low, high)]
    return Starts(whole[0], whole[1], weight.astype(np.float64), *whole[2:])


def _missing(parts: _Columns) -> MissingStarts:
    position, row, token, then, mass, low, high = parts.columns()
    position, row, token, then, low, high = (
        column.astype(np.int64) for column in (position, row, token, then, low, high)
    )
    return MissingStarts(position, row, token, then, mass.astype(np.float64), low, high)
