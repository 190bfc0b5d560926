"""Which rows a position's walk starts from, and with what weight.

A row stands BEFORE a position (only tokens that go on beyond the bytes already there
count) or AT it (every token counts). Weights are relative to the last row of the
rollout's own encoding before or at the position.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from teacher_server.realign.layout import Layout
from teacher_server.realign.rows import TeacherRows
from teacher_server.realign.tables import PairTables

Int64 = NDArray[np.int64]


@dataclass
class Starts:
    """Lists of equal length; ``position`` counts the positions asked for, from 0.

    ``skip``: bytes between the row and the position. ``low``, ``high``: ranks of the
    teacher's tokens that begin with these bytes and go on.
    """

    position: list[int] = field(default_factory=list)
    row: list[int] = field(default_factory=list)
    weight: list[float] = field(default_factory=list)
    skip: list[int] = field(default_factory=list)
    low: list[int] = field(default_factory=list)
    high: list[int] = field(default_factory=list)


@dataclass
class Unknown:
    """Paths that reach a position over a row that does not exist: (position, row, token, mass)."""

    paths: list[tuple[int, int, int, float]] = field(default_factory=list)


def starts(
    layout: Layout, positions: Int64, rows: TeacherRows, tables: PairTables
) -> tuple[Starts, Starts, Unknown]:
    """(before, at, unknown) for the student positions asked for, int64 [n]."""
    before, at, unknown = Starts(), Starts(), Unknown()
    offsets = layout.teacher_offsets.tolist()
    begin = layout.student_offsets[positions].tolist()
    first = np.searchsorted(layout.teacher_offsets, layout.student_offsets[positions]).tolist()
    sync = layout.sync[positions].tolist()
    ids = layout.teacher_ids.tolist()
    sums = rows.before.tolist()
    longer = tables.longer
    inside: list[tuple[int, int, int]] = []
    for index, offset in enumerate(begin):
        row = first[index]
        aligned = offsets[row] == offset
        last = row if aligned else row - 1
        if aligned:
            _add(at, index, row, 0.0, 0, 0, 0)
        else:
            inside.append((index, last, offset))
            continue
        for node in range(sync[index], row):
            if offsets[node + 1] == offset:
                low, high = longer[ids[node]].tolist()
            else:
                low, high = _longer(layout.data[offsets[node] : offset], tables)
            if low < high:
                weight = sums[node] - sums[last]
                _add(before, index, node, weight, offset - offsets[node], low, high)
    _inside(inside, before, at, unknown, layout, sync, rows, tables)
    return before, at, unknown


def _add(
    to: Starts, position: int, row: int, weight: float, skip: int, low: int, high: int
) -> None:
    to.position.append(position)
    to.row.append(row)
    to.weight.append(weight)
    to.skip.append(skip)
    to.low.append(low)
    to.high.append(high)


def _longer(data: bytes, tables: PairTables) -> tuple[int, int]:
    """Ranks of the teacher's tokens that begin with ``data`` and go on."""
    if not data.strip(b"\xff"):
        return 0, 0
    low, high = tables.teacher.extensions(data)
    texts = tables.teacher.sorted_bytes
    while low < high and len(texts[low]) == len(data):
        low += 1
    return low, high


def _inside(
    inside: list[tuple[int, int, int]],
    before: Starts,
    at: Starts,
    unknown: Unknown,
    layout: Layout,
    sync: list[int],
    rows: TeacherRows,
    tables: PairTables,
) -> None:
    """Positions inside a teacher token of the rollout's own encoding.

    What precedes a position is read as the teacher encodes it by itself, so that
    nothing depends on what follows. That path leaves the rollout's own; its rows exist
    only as far as the two agree, and where they were asked for.
    """
    texts = [
        layout.data[layout.teacher_offsets[sync[index]] : offset] for index, _, offset in inside
    ]
    encoded = tables.teacher.encoder.encode_each(texts)
    for (index, last, offset), path in zip(inside, encoded, strict=True):
        row, at_byte = sync[index], int(layout.teacher_offsets[sync[index]])
        weight = float(rows.before[row] - rows.before[last])
        for token in path:
            low, high = _longer(layout.data[at_byte:offset], tables)
            if low < high:
                _add(before, index, row, weight, offset - at_byte, low, high)
            step = _log_prob(rows, row, token)
            after = rows.child(row, token)
            at_byte += len(tables.teacher.token_bytes[token])
            weight += step
            if after is None:
                unknown.paths.append((index, row, token, float(np.exp(weight))))
                break
            row = after
        else:
            _add(at, index, row, weight, 0, 0, 0)


def _log_prob(rows: TeacherRows, row: int, token: int) -> float:
    """Of a token in a row; the row's floor bounds one that is not listed."""
    found = np.flatnonzero((rows.ids[row] == token) & (rows.log_probs[row] > -np.inf))
    return float(rows.log_probs[row, found[0]] if len(found) else rows.floor[row])
