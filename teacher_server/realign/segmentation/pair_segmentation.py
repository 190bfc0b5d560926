"""How the two tokenizers of one pair cut text, and what the teacher's spaces imply."""

from __future__ import annotations

from functools import cached_property

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
        writes no more of them (that behind one space more is another token), the student's
        token if a word, a digit or a symbol follows, or CONTRADICTS; OPEN where it depends on
        which. NOT_IMPLIED elsewhere.

        Args:
            state: int64 [n], once the path is written.
            token: int64 [n], the path's last teacher token.
        """
        found = np.full(len(state), NOT_IMPLIED)
        if not self._writable & SPACE:
            return found
        spaces = np.flatnonzero(self.states.end_in_spaces(state))
        followers = self.canonical_pairs.followers(np.full(len(spaces), -1), token[spaces])
        solid = followers & self._writable & SOLID
        last = np.flatnonzero((solid > 0) & (followers & SPACE == 0))
        found[spaces[last]] = self.states.answers_if_followed(state[spaces[last]], solid[last])
        return found

    @cached_property
    def _writable(self) -> int:
        """The set of FOLLOWERS that both sides can write."""
        sides = self.tables.student, self.tables.teacher
        each = [side.encoder.encode_each(list(FOLLOWERS)) for side in sides]
        both = enumerate(zip(*each, strict=True))
        return sum(1 << place for place, ids in both if all(ids))


def is_implied(implied: Int64) -> Bool:
    """bool [n]: which are a student's token or CONTRADICTS, neither OPEN nor NOT_IMPLIED."""
    known: Bool = implied >= CONTRADICTS
    return known
