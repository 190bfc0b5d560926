"""Which rows a position's walk starts from, and with what weight.

A row stands BEFORE a position (only tokens that go on beyond the bytes already there
count) or AT it (every token counts). Weights are relative to the last row of the
rollout's own encoding before or at the position.
"""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from teacher_server.realign.pair.layout import Layout
from teacher_server.realign.pair.tables import PairTables
from teacher_server.realign.segmentation.canonical import CONTRADICTS
from teacher_server.realign.segmentation.pair_segmentation import LearntPair
from teacher_server.realign.segmentation.spaces import FOLLOWING, spaces_before
from teacher_server.realign.walk.rows import Float64, TeacherRows

Int64 = NDArray[np.int64]
# Texts kept with their answers; beyond it the memory starts anew.
MAX_TEXTS = 200_000


@dataclass(frozen=True)
class Starts:
    """Arrays of equal length; ``position`` counts the positions asked for, from 0.

    ``skip``: bytes between the row and the position. ``low``, ``high``: ranks of the
    teacher's tokens that begin with these bytes and go on.
    """

    position: Int64
    row: Int64
    weight: Float64
    skip: Int64
    low: Int64
    high: Int64


@dataclass(frozen=True)
class Unknown:
    """Paths that reach a position over a row that does not exist.

    ``then``: the token that the path goes on with behind ``token``, or -1. ``low``,
    ``high``: ranks of the student tokens that may come of it.
    """

    position: Int64
    row: Int64
    token: Int64
    then: Int64
    mass: Float64
    low: Int64
    high: Int64


class _Parts:
    """Rows of a table, collected one by one or many at a time."""

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


class StartFinder:
    """Finds the starts of one pair's rollouts; what it looked up is kept between them."""

    def __init__(self, pair: LearntPair) -> None:
        self._pair = pair
        self._tables = pair.tables
        self._ranks: dict[bytes, tuple[int, int]] = {}
        self._encoded: dict[bytes, list[int]] = {}

    def starts(
        self, layout: Layout, positions: Int64, roots: Int64, rows: TeacherRows
    ) -> tuple[Starts, Starts, Unknown]:
        """(before, at, unknown) for the student positions asked for, int64 [n]; ``roots``
        are their states."""
        for memory in (self._ranks, self._encoded):
            if len(memory) > MAX_TEXTS:
                memory.clear()
        offsets = layout.teacher_offsets
        begin = layout.student_offsets[positions]
        row = np.searchsorted(offsets, begin)
        sync = layout.sync[positions]
        aligned = offsets[row] == begin
        last = np.where(aligned, row, row - 1)
        others: list[tuple[int, list[int], tuple[int, int]]] = []
        spaces = spaces_before(layout.data, begin)
        for index in np.flatnonzero(aligned & (row > sync) & spaces).tolist():
            end = int(begin[index])
            own = layout.teacher_ids[sync[index] : row[index]].tolist()
            paths = self._behind_spaces(int(roots[index]), layout, int(sync[index]), end)
            aligned[index] = any(path == own for path, _ in paths)
            others += [(index, path, ranks) for path, ranks in paths if path != own]
        before, at, unknown = _Parts(6), _Parts(6), _Parts(7)
        which = np.flatnonzero(aligned)
        zeros = np.zeros(len(which), np.int64)
        at.add_all(which, row[which], np.zeros(len(which)), zeros, zeros, zeros)
        self._aligned(which, row[which], sync[which], begin[which], before, layout, rows)
        known = {index for index, *_ in others}
        inside = [one for one in np.flatnonzero(~aligned).tolist() if one not in known]
        texts = [layout.data[layout.teacher_offsets[sync[one]] : begin[one]] for one in inside]
        every = [self._everything] * len(inside)
        others += zip(inside, self._encodings(texts), every, strict=True)
        begun = set(which.tolist())
        for index, path, ranks in others:
            place = int(sync[index]), int(last[index]), int(begin[index])
            self._follow(
                index, path, ranks, place, index not in begun, before, at, unknown, layout, rows
            )
            begun.add(index)
        return _starts(before), _starts(at), _unknown(unknown)

    def _behind_spaces(
        self, root: int, layout: Layout, sync: int, end: int
    ) -> list[tuple[list[int], tuple[int, int]]]:
        """The teacher's encodings of what precedes a position behind several spaces, and the
        ranks of the student tokens that may follow each.

        How many of them stand by themselves depends on what follows: more space, a word
        or a digit. Those that the student's tokens rule out do not count.
        """
        text = layout.data[int(layout.teacher_offsets[sync]) : end]
        states = self._pair.states
        follows = states.enter(np.full(len(FOLLOWING), root), list(FOLLOWING))
        possible = states.answer(follows) != CONTRADICTS
        kinds = [one for one, fits in zip(FOLLOWING, possible.tolist(), strict=True) if fits]
        lengths = self._tables.teacher.lengths_list
        found: dict[tuple[int, ...], tuple[int, int]] = {}
        for kind, path in zip(kinds, self._encodings([text + one for one in kinds]), strict=True):
            read = kept = 0
            while read < len(text) and kept < len(path):
                read += lengths[path[kept]]
                kept += 1
            if read == len(text):
                behind = tuple(path[:kept])
                ranks = self._ranks_of[kind]
                found[behind] = ranks if found.get(behind, ranks) == ranks else self._everything
        if not found:
            found[tuple(self._encodings([text])[0])] = self._everything
        return [(list(path), ranks) for path, ranks in found.items()]

    @cached_property
    def _everything(self) -> tuple[int, int]:
        return 0, len(self._tables.student.order)

    @cached_property
    def _ranks_of(self) -> dict[bytes, tuple[int, int]]:
        """Of the student tokens that begin with space, a digit, or anything else."""
        texts, every = self._tables.student.sorted_bytes, self._everything
        ends = [bisect_left(texts, one) for one in (b"\t", b"!", b"0", b":")]
        spaces, digits = (ends[0], ends[1]), (ends[2], ends[3])
        return dict.fromkeys(FOLLOWING, every) | {b" x": spaces, b"\n": spaces, b"7": digits}

    def _aligned(
        self,
        which: Int64,
        row: Int64,
        sync: Int64,
        begin: Int64,
        before: _Parts,
        layout: Layout,
        rows: TeacherRows,
    ) -> None:
        """Rows of the rollout's own encoding between the sync points and the positions."""
        counts = row - sync
        owner = np.repeat(np.arange(len(which)), counts)
        node = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts) + sync[owner]
        offsets = layout.teacher_offsets
        token = layout.teacher_ids[node].astype(np.int64)
        near = self._tables.reach[token] > begin[owner] - offsets[node]
        owner, node, token = owner[near], node[near], token[near]
        ranks = self._tables.longer[token]
        for index in np.flatnonzero(offsets[node + 1] != begin[owner]).tolist():
            ranks[index] = self._longer(layout.data[offsets[node[index]] : begin[owner[index]]])
        some = ranks[:, 0] < ranks[:, 1]
        owner, node, ranks = owner[some], node[some], ranks[some]
        weight = rows.before[node] - rows.before[row[owner]]
        skip = begin[owner] - offsets[node]
        before.add_all(which[owner], node, weight, skip, ranks[:, 0], ranks[:, 1])

    def _longer(self, data: bytes) -> tuple[int, int]:
        """Ranks of the teacher's tokens that begin with ``data`` and go on."""
        found = self._ranks.get(data)
        if found is None:
            found = self._ranks[data] = _longer(data, self._tables)
        return found

    def _encodings(self, texts: list[bytes]) -> list[list[int]]:
        new = list(dict.fromkeys(text for text in texts if text not in self._encoded))
        if new:
            encoded = self._tables.teacher.encoder.encode_each(new)
            self._encoded.update(zip(new, encoded, strict=True))
        return [self._encoded[text] for text in texts]

    def _follow(
        self,
        index: int,
        path: list[int],
        ranks: tuple[int, int],
        place: tuple[int, int, int],
        first: bool,
        before: _Parts,
        at: _Parts,
        unknown: _Parts,
        layout: Layout,
        rows: TeacherRows,
    ) -> None:
        """A teacher encoding of what precedes a position, by itself, so that nothing depends
        on what follows; its rows exist only as far as they are the rollout's own, and where
        they were asked for.

        Args:
            ranks: of the student tokens that may follow.
            place: row of the sync point, last row of the rollout's own encoding before or
                at the position, and the position's offset.
            first: whether no other path of the position has been followed: the rollout's
                own rows before it count once.
        """
        row, last, offset = place
        at_byte = int(layout.teacher_offsets[row])
        weight = float(rows.before[row] - rows.before[last])
        for token, then in zip(path, [*path[1:], -1], strict=True):
            if first or row >= len(rows.own):
                low, high = self._longer(layout.data[at_byte:offset])
                if low < high:
                    before.add(index, row, weight, offset - at_byte, low, high)
            weight += rows.log_prob(row, token)
            after = rows.child(row, token)
            at_byte += self._tables.teacher.lengths_list[token]
            if after is None:
                unknown.add(index, row, token, then, float(np.exp(weight)), *ranks)
                return
            row = after
        at.add(index, row, weight, 0, 0, 0)


def _starts(parts: _Parts) -> Starts:
    position, row, weight, skip, low, high = parts.columns()
    whole = [column.astype(np.int64) for column in (position, row, skip, low, high)]
    return Starts(whole[0], whole[1], weight.astype(np.float64), *whole[2:])


def _unknown(parts: _Parts) -> Unknown:
    position, row, token, then, mass, low, high = parts.columns()
    position, row, token, then, low, high = (
        column.astype(np.int64) for column in (position, row, token, then, low, high)
    )
    return Unknown(position, row, token, then, mass.astype(np.float64), low, high)


def _longer(data: bytes, tables: PairTables) -> tuple[int, int]:
    if not data.strip(b"\xff"):
        return 0, 0
    low, high = tables.teacher.extensions(data)
    texts = tables.teacher.sorted_bytes
    while low < high and len(texts[low]) == len(data):
        low += 1
    return low, high
