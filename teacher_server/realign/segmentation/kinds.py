"""What is known of each teacher token of a pair, whatever the text."""

from __future__ import annotations

import numpy as np

from teacher_server.realign.pair.tables import PairTables

# Equal symbols that are a run.
LEAST_RUN = 4


class TokenKinds:
    """What a walk may do with each teacher token: bool [V_T] each, but for the last.

    Attributes:
        not_special: the token is not special.
        inexpressible: no student token can express it, so that its mass is lost.
        estimated: it may be extended, as far as the vocabularies tell
            (``PairTables.may_extend``), or is one space or a run of one symbol and has an
            extension.
        asked: its context-free row may be asked for.
        single_space: it is one space, and has an extension.
        gains_from_row: it has an extension, or ends in what may become an added token of the
            student, so that the row after it may move the student's token.
        student_token: int64 [V_T], the student's token, if this one settles it.
    """

    def __init__(self, tables: PairTables) -> None:
        teacher, student = tables.teacher, tables.student
        special = np.zeros(teacher.size, np.bool_)
        special[list(teacher.specials)] = True
        counterparts, first = tables.special_to_student, tables.first_student_token
        self.not_special = ~special
        self.student_token = np.where(special, counterparts, first).astype(np.int64)
        self.inexpressible = self.student_token < 0
        expressible_text = ~special & ~self.inexpressible
        has_extension = tables.has_extension & expressible_text
        # No token is safe: with what follows, the student may cut it anywhere ("老人" and
        # "在" as "老", "人在"), so the context-free row of every one is of use. Of the first
        # bytes of a character it is not: they are extended whatever it shows.
        self.asked = expressible_text & ~tables.partial_character
        # A word takes its space along: a space by itself is written for what comes next.
        self.single_space = np.array([one == b" " for one in teacher.token_bytes]) & has_extension
        # What draws a line goes on with it, however rare its longer tokens are.
        runs = np.array([_is_run(one) for one in teacher.token_bytes]) & has_extension
        self.estimated = (tables.may_extend & expressible_text) | self.single_space | runs
        begins_added = np.array([student.added.begun(one) > 0 for one in teacher.token_bytes])
        begins_added &= expressible_text
        self.estimated |= begins_added
        self.gains_from_row = has_extension | begins_added


def _is_run(data: bytes) -> bool:
    """Whether it is several times one symbol of ASCII."""
    symbol = data[:1].isascii() and not data[:1].isalnum() and not data[:1].isspace()
    return symbol and len(data) >= LEAST_RUN and data == data[:1] * len(data)
