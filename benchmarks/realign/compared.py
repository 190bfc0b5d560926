"""Two versions of one row."""

from __future__ import annotations

import numpy as np
from teacher_proto.types import PositionClass

from teacher_server.realign.realigner import RealignedRows


def rows_apart(first: RealignedRows, second: RealignedRows) -> float | None:
    """Total variation between two versions of one row (position 0 of each) over the ids
    that both certify; None where one of them is masked."""
    if PositionClass.MASKED in (first.position_class[0], second.position_class[0]):
        return None
    values = [_certified(rows) for rows in (first, second)]
    common = values[0].keys() & values[1].keys()
    return sum(abs(values[0][token] - values[1][token]) for token in common) / 2


def contradiction(first: RealignedRows, second: RealignedRows) -> float:
    """The mass that one version of a row (position 0 of each) settles beyond all that the
    other leaves possible; masks do not matter."""
    worst = 0.0
    for one, other in ((first, second), (second, first)):
        mine, theirs = _settled(one), _settled(other)
        rest = float(other.certified.open_mass[0] + other.certified.lost_mass[0])
        beyond = sum(max(0.0, mass - theirs.get(token, 0.0)) for token, mass in mine.items())
        worst = max(worst, beyond - rest)
    return worst


def _settled(rows: RealignedRows) -> dict[int, float]:
    settled = rows.walked.settled
    masses: dict[int, float] = {}
    for token, mass in zip(settled.token.tolist(), settled.mass.tolist(), strict=True):
        masses[token] = masses.get(token, 0.0) + mass / float(rows.walked.total[0])
    return masses


def _certified(rows: RealignedRows) -> dict[int, float]:
    count = int(rows.certified.counts[0])
    values = np.exp(rows.certified.log_probs[0, :count].astype(np.float64))
    return dict(zip(rows.certified.ids[0, :count].tolist(), values.tolist(), strict=True))
