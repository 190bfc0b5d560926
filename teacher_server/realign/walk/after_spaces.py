"""What several spaces at the end of a path become where the row after them is not there."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from teacher_server.realign.segmentation.pair_segmentation import is_implied
from teacher_server.realign.segmentation.states import OPEN
from teacher_server.realign.walk.paths import Paths, WalkContext

Int64 = NDArray[np.int64]


def answers_after_spaces(
    walk: WalkContext, before: Int64, paths: Paths, implied: Int64
) -> tuple[Int64, Paths]:
    """(implied, paths): asks the context-free rows of paths [n] that end in several spaces and have
    no row after them what the teacher's own cut does not imply. Where such a row gives one student
    token nearly all of the mass, that is implied; where it gives one the larger part, this part
    is settled at once, and the path that is returned has what is left, OPEN.

    Args:
        before: int64 [n], the teacher's tokens before the paths' last; -1: none.
        implied: int64 [n], as ``PairSegmentation.implied_by_spaces`` gives it, NOT_IMPLIED where
            the row after the path is there.
    """
    spaces = walk.pair.states.end_in_spaces(paths.state)
    which = np.flatnonzero(spaces & ~paths.have_next_row & ~is_implied(implied))
    if not len(which):
        return implied, paths
    asked = paths.some(which)
    answers, shares = walk.extensions.answers_after_spaces(
        before[which], asked.token, asked.mass, asked.state
    )
    whole = is_implied(answers) & (shares == 1.0)
    implied = implied.copy()
    implied[which] = np.where(whole, answers, implied[which])
    partly = np.flatnonzero((answers >= 0) & (shares < 1.0))
    part = asked.mass[partly] * shares[partly]
    walk.ledger.settle(asked.position[partly], answers[partly], part)
    implied[which[partly]] = OPEN
    mass = paths.mass.copy()
    mass[which[partly]] -= part
    return implied, replace(paths, mass=mass)
