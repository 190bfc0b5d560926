"""Cells: a row of a student whose tokens the teacher's rows tell only in groups.

Where no row decides between the student tokens that begin with certain bytes, their mass
together is known all the same: it is the mass of the path that writes these bytes. A *cell*
is such a set of tokens with its mass. Certified tokens are cells of their own, and one more
cell, the rest, has every other token, so that cells are a partition of the vocabulary.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from teacher_server.realign.certify import Certified
from teacher_server.realign.pair.tables import MAX_UNSETTLED
from teacher_server.realign.pair.vocabulary import Vocabulary
from teacher_server.realign.walk.masses import WalkResult

Int64 = NDArray[np.int64]
Float64 = NDArray[np.float64]
# The cell that has every token which is in no other.
REST = 0
# In a level's groups: the cell is not among the tokens that begin with the level's prefix.
OUTSIDE = -1


@dataclass(frozen=True)
class Cells:
    """A partition of V tokens into C cells, of one position.

    Attributes:
        cell_of: int64 [V].
        mass: float64 [C], of the teacher.
        labels: C byte strings: what all tokens of a cell begin with; empty for the rest.
    """

    cell_of: Int64
    mass: Float64
    labels: tuple[bytes, ...]


def cells_of(walked: WalkResult, certified: Certified, index: int, student: Vocabulary) -> Cells:
    """The finest cells whose masses the walk knows, of its position ``index``.

    Every open path makes a cell of the tokens that begin with its bytes and are in no finer
    cell. A token that is not certified and that open paths' bytes begin with
    belongs to the heaviest such path's cell: the path may still end there.
    """
    count = int(certified.counts[index])
    singles = certified.ids[index, :count].astype(np.int64)
    cell_of = np.full(student.size, REST)
    masses = [0.0]
    labels = [b""]
    total = walked.total[index]
    for low, high, mass in _open_ranges(walked, index):
        cell_of[student.order[low:high]] = len(masses)
        masses.append(mass / total)
        labels.append(_common(student.sorted_bytes[low], student.sorted_bytes[high - 1]))
    open_cells = sorted(range(1, len(masses)), key=masses.__getitem__, reverse=True)
    cell_of[singles] = np.arange(len(singles)) + len(masses)
    masses += np.exp(certified.log_probs[index, :count].astype(np.float64)).tolist()
    labels += [label_of(token, student) for token in singles.tolist()]
    for cell in open_cells:
        for length in range(1, len(labels[cell])):
            token = student.by_bytes.get(labels[cell][:length], -1)
            if token >= 0 and cell_of[token] == REST:
                cell_of[token] = cell
    at = np.flatnonzero(walked.settled.position == index)
    at = at[~np.isin(walked.settled.token[at], singles)]
    mass = np.array(masses)
    np.add.at(mass, cell_of[walked.settled.token[at]], walked.settled.mass[at] / total)
    # What is below the rows' best ids is in no cell.
    mass[REST] += (walked.lost[index] + walked.tail[index]) / total
    return Cells(cell_of, mass, tuple(labels))


def without(cells: Cells, never: Sequence[int]) -> Cells:
    """The cells of a student that never draws certain ids: their mass is in the rest."""
    cell_of = cells.cell_of.copy()
    cell_of[list(never)] = REST
    empty = np.bincount(cell_of, minlength=len(cells.mass)) == 0
    mass = np.where(empty, 0.0, cells.mass)
    mass[REST] = cells.mass[REST] + cells.mass[empty].sum()
    return Cells(cell_of, mass, cells.labels)


def label_of(token: int, student: Vocabulary) -> bytes:
    """The bytes of a token; of a special one its text, after a byte that no text has."""
    data = student.token_bytes[token]
    return data or b"\xff" + student.specials[token].encode()


def _open_ranges(walked: WalkResult, index: int) -> list[tuple[int, int, float]]:
    """(low, high, mass) of the open paths' ranks of tokens, outer ones before those within
    them; paths that no token begins with are left out: their mass is in no cell.

    A path within others is part of the innermost of them if their mass, which may be its own,
    could change it by more than MAX_UNSETTLED.
    """
    opened = walked.open
    at = np.flatnonzero((opened.position == index) & (opened.high > opened.low))
    sums: dict[tuple[int, int], float] = defaultdict(float)
    for one in at.tolist():
        sums[int(opened.low[one]), -int(opened.high[one])] += float(opened.mass[one])
    found: list[tuple[int, int, float]] = []
    around: list[int] = []
    for (low, minus_high), mass in sorted(sums.items()):
        while around and found[around[-1]][1] <= low:
            around.pop()
        if around and sum(found[one][2] for one in around) > MAX_UNSETTLED * mass:
            begin, end, before = found[around[-1]]
            found[around[-1]] = begin, end, before + mass
        else:
            around.append(len(found))
            found.append((low, -minus_high, mass))
    return found


def _common(first: bytes, last: bytes) -> bytes:
    """What both begin with."""
    length = next(
        (at for at, (a, b) in enumerate(zip(first, last, strict=False)) if a != b),
        min(len(first), len(last)),
    )
    return first[:length]


def groups_by_level(cells: Cells, sampled: bytes) -> list[Int64]:
    """For each prefix of the sampled token's bytes, from none to all, the cells that begin with it,
    grouped by what comes next, as long as there are several groups.

    Args:
        sampled: the token's ``label_of``.

    Returns:
        For each level int64 [C]: the group of each cell, from 0 on, or OUTSIDE. At level 0
        every cell has a group, and the rest has one of its own.
    """
    levels = []
    for length in range(len(sampled) + 1):
        prefix, names = sampled[:length], {}
        groups = np.full(len(cells.labels), OUTSIDE)
        for cell, label in enumerate(cells.labels):
            if cell == REST and length:
                continue
            if label.startswith(prefix):
                name = label[: length + 1]
                groups[cell] = names.setdefault(name, len(names))
        if length and len(names) < 2:
            break
        levels.append(groups)
    return levels


def merged(cells: Cells, groups: Int64) -> Cells:
    """The coarser cells that the groups of level 0 make."""
    mass = np.bincount(groups, cells.mass)
    first = [int(np.flatnonzero(groups == group)[0]) for group in range(len(mass))]
    return Cells(groups[cells.cell_of], mass, tuple(cells.labels[one][:1] for one in first))
