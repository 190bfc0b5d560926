"""Added tokens of one tokenizer that the other lacks: in a pair of the two they are text.

An added token stands for its text. Where the other side has a counterpart (a token with the
same role or the same text), the two are carried one to one, as special ids. Where it has
none, the token is an ordinary one with the bytes of its text: the other side spells it, and
reads what spells it, as its own tokens.
"""

from __future__ import annotations

from teacher_proto.types import SpecialRole

from teacher_server.realign.pair.roles import MAPPED, TERMINATORS, counterpart
from teacher_server.realign.pair.vocabulary import Vocabulary

# What these are for cannot be written down: without a counterpart they stay special.
NEVER_SPELT = (*TERMINATORS, SpecialRole.BEGIN_OF_TEXT, SpecialRole.PADDING)
# Bytes of a token. A longer one stays special too: the tables grow with what is spelt.
MAX_SPELT = 128


def as_a_pair(student: Vocabulary, teacher: Vocabulary) -> tuple[Vocabulary, Vocabulary]:
    """Both, with the added tokens that the other lacks as ordinary ones."""
    of_student, of_teacher = _lacked(student, teacher), _lacked(teacher, student)
    return student.with_text(of_student), teacher.with_text(of_teacher)


def equal_text(token: int, own: Vocabulary, other: Vocabulary) -> int | None:
    """The special id of ``other`` with the text of this special id, or None."""
    return other.special_ids.get(own.specials[token])


def _lacked(own: Vocabulary, other: Vocabulary) -> frozenset[int]:
    """The special ids of ``own`` that ``other`` has no counterpart of and can spell."""
    return frozenset(
        token
        for token, role in own.roles.items()
        if role not in NEVER_SPELT
        and own.specials[token] != own.unknown
        and len(own.specials[token].encode()) <= MAX_SPELT
        and equal_text(token, own, other) is None
        and (role not in MAPPED or counterpart(role, other.roles) is None)
    )
