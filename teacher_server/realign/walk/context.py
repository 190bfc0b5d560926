"""What the steps of one walk share: the kinds of teacher tokens, rows, ledger, open paths."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from teacher_proto.types import Bool

from teacher_server.realign.pair.layout import Layout
from teacher_server.realign.pair.tables import PairTables
from teacher_server.realign.segmentation.added import AddedTexts
from teacher_server.realign.segmentation.pair_segmentation import PairSegmentation
from teacher_server.realign.walk.extensions import TokenExtensions
from teacher_server.realign.walk.masses import MassLedger
from teacher_server.realign.walk.rows import Float64, TeacherRows

Int64 = NDArray[np.int64]
# An entry with a smaller part of its row's or path's mass is not looked at one by one:
# it stays open (inside a teacher token it does not count).
SIGNIFICANT = 1e-4


class TokenKinds:
    """What a walk does with each teacher token, whatever the text: bool [V_T] each, but for
    the last.

    Attributes:
        not_special: the token is not special.
        inexpressible: no student token can express it, so that its mass is lost.
        has_extension, may_extend, partial_character: as in ``PairTables``, of tokens of text
            that the student can express.
        asked: its context-free row may be asked for.
        single_space: it is one space, and has an extension.
        begins_added: it ends in what may become an added token of the student.
        student_token: int64 [V_T], the student's token, if this one settles it.
    """

    def __init__(self, tables: PairTables) -> None:
        teacher = tables.teacher
        special = np.zeros(teacher.size, np.bool_)
        special[list(teacher.specials)] = True
        counterparts = tables.special_to_student
        first = tables.first_student_token
        self.not_special = ~special
        self.inexpressible = (special & (counterparts < 0)) | (~special & (first < 0))
        expressible_text = ~special & ~self.inexpressible
        self.has_extension = tables.has_extension & expressible_text
        self.may_extend = tables.may_extend & expressible_text
        self.partial_character = tables.partial_character & expressible_text
        # No token is safe: with what follows, the student may cut it anywhere ("老人" and
        # "在" as "老", "人在"), so the context-free row of every one is of use.
        self.asked = expressible_text & ~self.partial_character
        # A word takes its space along: a space by itself is written for what comes next.
        is_space = np.array([one == b" " for one in teacher.token_bytes])
        self.single_space = is_space & self.has_extension
        student = tables.student
        added = AddedTexts(student.token_bytes[token] for token in student.spelt)
        begun = np.array([added.begun(one) > 0 for one in teacher.token_bytes])
        self.begins_added = begun & expressible_text
        self.student_token = np.where(special, counterparts, first).astype(np.int64)


@dataclass(frozen=True)
class WalkContext:
    """One walk over a rollout: what its steps read, and the ledger they write.

    Attributes:
        kinds: of the teacher's tokens.
        pair: how the two tokenizers cut text.
        layout: the rollout in both tokenizers.
        rows: the teacher's.
        sync: int64 [n], the row at each position's sync point.
        initial: int64 [n], the initial state of each position.
        extensions: which tokens may be extended.
        ledger: the masses found so far.
    """

    kinds: TokenKinds
    pair: PairSegmentation
    layout: Layout
    rows: TeacherRows
    sync: Int64
    initial: Int64
    extensions: TokenExtensions
    ledger: MassLedger


@dataclass(frozen=True)
class OpenPaths:
    """Arrays of n paths that have settled nothing yet.

    Attributes:
        position: place among the positions asked for.
        row: the row after the path; NO_ROW where there is none.
        token: the path's last teacher token.
        mass: of the path.
        state: of ``StudentStates``, once the path is written.
        node: of the prefix trie, as in ``PairTables.trie_steps``.
        first: as in ``Entries``.
    """

    position: Int64
    row: Int64
    token: Int64
    mass: Float64
    state: Int64
    node: Int64
    first: Int64

    def some(self, which: Bool) -> OpenPaths:
        """The paths where ``which`` is true."""
        return OpenPaths(*(getattr(self, name)[which] for name in self.__dataclass_fields__))

    def __add__(self, other: OpenPaths) -> OpenPaths:
        names = self.__dataclass_fields__
        return OpenPaths(*(np.concatenate([getattr(self, n), getattr(other, n)]) for n in names))

    def leave_open(self, walk: WalkContext, row: Int64, token: Int64) -> None:
        """Leaves the mass of the paths open.

        Args:
            row, token: int64 [n], the row after this row and token would settle more.
        """
        ranges = walk.pair.states.prefix_ranges(self.state)
        walk.ledger.leave_open(self.position, token, self.mass, row, ranges, self.first)
