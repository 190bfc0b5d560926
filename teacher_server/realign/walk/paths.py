"""Paths of teacher tokens and their fates, and what the steps of a walk share.

Each step of a walk decides a fate for each of its paths (``fates``, and what it knows
beside); only ``act`` does with them what their fates say.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray
from teacher_proto.types import Bool

from teacher_server.realign.segmentation.canonical import CONTRADICTS
from teacher_server.realign.segmentation.kinds import TokenKinds
from teacher_server.realign.segmentation.number_answers import ALONE, LOST, RULED_OUT, NumberAnswers
from teacher_server.realign.segmentation.pair_segmentation import PairSegmentation, is_implied
from teacher_server.realign.segmentation.states import OPEN
from teacher_server.realign.walk.extensions import Extensions
from teacher_server.realign.walk.masses import MassLedger
from teacher_server.realign.walk.rows import NO_ROW, Float64, TeacherRows

Int64 = NDArray[np.int64]
Fates = NDArray[np.int8]


@dataclass(frozen=True)
class WalkContext:
    """One walk over a rollout: what its steps read, and the ledger they write.

    Attributes:
        kinds: of the teacher's tokens.
        pair: how the two tokenizers cut text.
        rows: the teacher's.
        initial: int64 [n], the initial state of each position.
        extensions: which tokens may be extended.
        ledger: the masses found so far.
        numbers: what numbers give where wide rows are read.
    """

    kinds: TokenKinds
    pair: PairSegmentation
    rows: TeacherRows
    initial: Int64
    extensions: Extensions
    ledger: MassLedger
    numbers: NumberAnswers


class Fate(IntEnum):
    """What becomes of a path.

    NOTHING: it has no mass, or is decided elsewhere.
    SETTLE: nothing that follows can change the student's token: it gets the mass.
    RULE_OUT: the student would have cut the text before the position in another way.
    LOSE: no student token can express the path.
    OPEN: what follows decides, and the row after the path was not asked for.
    FOLLOW: what follows decides, and the row after the path is there.
    """

    NOTHING = 0
    SETTLE = 1
    RULE_OUT = 2
    LOSE = 3
    OPEN = 4
    FOLLOW = 5


@dataclass(frozen=True)
class Paths:
    """Arrays of n paths: what a teacher may write from a position on.

    Attributes:
        position: place among the positions asked for.
        row: the row that the path's last token is read from.
        token: the path's last teacher token.
        mass: of the path.
        state: of ``StudentStates``, once the path is written; EMPTY_STATE before.
        node: of the prefix trie, as in ``PairTables.trie_steps``.
        after: the row after the path; NO_ROW where it was not asked for.
        first: as in ``Entries``.
    """

    position: Int64
    row: Int64
    token: Int64
    mass: Float64
    state: Int64
    node: Int64
    after: Int64
    first: Int64

    def some(self, which: Bool | Int64) -> Paths:
        """The paths where ``which`` is true, or at these places."""
        place = np.flatnonzero(which) if which.dtype == np.bool_ else which
        return Paths(*(getattr(self, name).take(place) for name in self.__dataclass_fields__))

    def __add__(self, other: Paths) -> Paths:
        names = self.__dataclass_fields__
        return Paths(*(np.concatenate([getattr(self, n), getattr(other, n)]) for n in names))

    @property
    def have_next_row(self) -> Bool:
        """bool [n]: the row after the path is there."""
        there: Bool = self.after != NO_ROW
        return there


def fates(paths: Paths, answer: Int64, decided: Bool) -> Fates:
    """int8 [n]: the paths' fates, where student tokens can express them.

    Args:
        answer: int64 [n], the student's tokens, or CONTRADICTS.
        decided: bool [n], whether nothing that follows can change them.
    """
    fate = np.where(decided, np.int8(Fate.SETTLE), np.int8(Fate.OPEN))
    fate[decided & (answer == CONTRADICTS)] = Fate.RULE_OUT
    fate[~decided & paths.have_next_row] = Fate.FOLLOW
    return fate


def number_answers(fate: Fates, answer: Int64) -> Int64:
    """int64 [n]: ``answer`` of numbers that settle, by their fates, else why they have none, as
    ``NumberAnswers`` has it."""
    answers = np.full(len(fate), ALONE)
    settled = fate == Fate.SETTLE
    answers[settled] = answer[settled]
    answers[fate == Fate.RULE_OUT] = RULED_OUT
    answers[fate == Fate.LOSE] = LOST
    return answers


def settle_after_spaces(
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


def act(
    paths: Paths,
    fate: Fates,
    answer: Int64,
    ledger: MassLedger,
    ranges: Callable[[Paths], Int64],
) -> Paths:
    """Does with each path what its fate says; returns the paths that are followed.

    Args:
        answer: int64 [n], the student's tokens of paths that settle.
        ranges: int64 [n, 2] of n open paths: ranks of the student tokens that may come of
            each.
    """
    settled = np.flatnonzero(fate == Fate.SETTLE)  # nearly all of them
    ledger.settle(paths.position.take(settled), answer.take(settled), paths.mass.take(settled))
    others = np.flatnonzero(fate > Fate.SETTLE)
    fate, paths = fate[others], paths.some(others)
    ruled_out, lost = fate == Fate.RULE_OUT, fate == Fate.LOSE
    ledger.rule_out(paths.position[ruled_out], paths.mass[ruled_out])
    ledger.lose(paths.position[lost], paths.mass[lost])
    left = paths.some(fate == Fate.OPEN)
    ledger.leave_open(left.position, left.token, left.mass, left.row, ranges(left), left.first)
    return paths.some(fate == Fate.FOLLOW)
