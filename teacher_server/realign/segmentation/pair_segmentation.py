"""The tables of a pair, and what its tokenizers were asked; filled as it is used."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from teacher_proto.types import Bool

from teacher_server.realign.pair.tables import PairTables
from teacher_server.realign.segmentation.canonical import CONTRADICTS, END, OwnPairs
from teacher_server.realign.segmentation.states import OPEN, UNTOLD, StudentStates

Int64 = NDArray[np.int64]


class LearntPair:
    """A pair's tables and what its tokenizers were asked; filled as it is used."""

    def __init__(self, tables: PairTables) -> None:
        self.tables = tables
        self.states = StudentStates(tables)
        self.own_pairs = OwnPairs(tables.teacher)

    def told(self, state: Int64, before: Int64, token: Int64) -> tuple[Int64, Bool]:
        """What the teacher's own cut of several spaces tells of what follows them: seven and
        one, where it has a token of eight, only stand before a digit or the like.

        Args:
            state: int64 [n], once the path is written.
            before, token: int64 [n], the path's last two teacher tokens; before -1: none.

        Returns: (answers, depends), [n] each: where something must follow, the student's
            token or CONTRADICTS if all that can gives the same, OPEN if not; elsewhere
            UNTOLD; whether the token depends on what follows, the end of the text included.
        """
        answers, depends = np.full(len(state), UNTOLD), np.zeros(len(state), np.bool_)
        spaces = np.flatnonzero(self.states.spaces(state))
        kinds = self.own_pairs.followed(before[spaces], token[spaces])
        for index, kind in zip(spaces.tolist(), kinds.tolist(), strict=True):
            if kind:
                answer = self.states.answer_before(int(state[index]), kind)
                depends[index] = answer == OPEN
                answers[index] = answer if kind < END else UNTOLD
        return answers, depends


def is_told(answers: Int64) -> Bool:
    """bool [n]: which are a token or CONTRADICTS."""
    told: Bool = answers >= CONTRADICTS
    return told
