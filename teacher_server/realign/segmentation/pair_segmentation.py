"""How the two tokenizers of one pair cut text, and what the teacher's spaces imply."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from teacher_proto.types import Bool

from teacher_server.realign.pair.tables import PairTables
from teacher_server.realign.segmentation.canonical import CONTRADICTS, END, CanonicalPairs
from teacher_server.realign.segmentation.spaces import FOLLOWERS
from teacher_server.realign.segmentation.states import OPEN, StudentStates

Int64 = NDArray[np.int64]
# Instead of an answer: the teacher's own cut does not imply one.
NOT_IMPLIED = -3
# Of FOLLOWERS: one more space, and what is no white space.
SPACE = sum(1 << place for place, one in enumerate(FOLLOWERS) if one[:1] == b" ")
SOLID = sum(1 << place for place, one in enumerate(FOLLOWERS) if not one[:1].isspace())


class PairSegmentation:
    """The tables of a pair with what its tokenizers have been asked; filled as it is used.

    Attributes:
        tables: what is fixed for the pair.
        states: the student's tokens for the text that a path writes.
        canonical_pairs: the teacher's canonical pairs of tokens.
    """

    def __init__(self, tables: PairTables) -> None:
        self.tables = tables
        self.states = StudentStates(tables)
        self.canonical_pairs = CanonicalPairs(tables.teacher)

    def implied_by_spaces(self, state: Int64, before: Int64, token: Int64) -> tuple[Int64, Bool]:
        """What follows several spaces, as far as the teacher's own cut of them implies it:
        seven and one, where it has a token of eight, only stand before a digit or the like.

        Args:
            state: int64 [n], once the path is written.
            before, token: int64 [n], the path's last two teacher tokens; before -1: none.

        Returns (implied, depends), [n] each. implied: where something must follow, the
        student's token, or CONTRADICTS, if everything that can follow gives the same, and
        OPEN if not; NOT_IMPLIED elsewhere. depends: whether the student's token depends on
        what follows, the end of the text included.
        """
        implied, depends = np.full(len(state), NOT_IMPLIED), np.zeros(len(state), np.bool_)
        spaces = np.flatnonzero(self.states.end_in_spaces(state))
        followers = self.canonical_pairs.followers(before[spaces], token[spaces])
        spaces, followers = spaces[followers > 0], followers[followers > 0]
        answers = self.states.answers_if_followed(state[spaces], followers)
        depends[spaces] = answers == OPEN
        implied[spaces] = np.where(followers < END, answers, NOT_IMPLIED)
        return implied, depends

    def before_solid(self, state: Int64, token: Int64) -> Int64:
        """int64 [n]: of paths that end in several spaces with a token behind which the teacher
        writes no more of them (it has one for each number of spaces), the student's token if a
        word, a digit or a symbol follows, or CONTRADICTS; OPEN where it depends on which.
        NOT_IMPLIED elsewhere.

        Args:
            state: int64 [n], once the path is written.
            token: int64 [n], the path's last teacher token.
        """
        found = np.full(len(state), NOT_IMPLIED)
        spaces = np.flatnonzero(self.states.end_in_spaces(state))
        none = np.full(len(spaces), -1)
        followers = self.canonical_pairs.followers(none, token[spaces])
        for index, possible in zip(spaces.tolist(), followers.tolist(), strict=True):
            if possible & SOLID and not possible & SPACE:
                found[index] = self.states.answer_if_followed(int(state[index]), possible & SOLID)
        return found


def is_implied(implied: Int64) -> Bool:
    """bool [n]: which are a student's token or CONTRADICTS, neither OPEN nor NOT_IMPLIED."""
    known: Bool = implied >= CONTRADICTS
    return known
