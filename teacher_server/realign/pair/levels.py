"""How closely two tokenizers agree: decided by their content, never by size or name."""

from __future__ import annotations

from teacher_proto.types import Level

from teacher_server.realign.pair.vocabulary import Vocabulary


def pair_level(student: Vocabulary, teacher: Vocabulary) -> Level:
    """SAME: everything that decides ids is equal. REMAP: only added tokens differ. CROSS:
    anything else."""
    if student.hash == teacher.hash:
        return Level.SAME
    if student.ordinary_hash == teacher.ordinary_hash:
        return Level.REMAP
    return Level.CROSS
