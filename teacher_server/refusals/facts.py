"""What is known of a teacher and of a registered tokenizer when a request is checked."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class TeacherFacts:
    """What a request is checked against.

    Attributes:
        vocabulary_size: width of the teacher's logits.
        max_top_k, max_length: limits of this teacher.
        tokenizer_hash: of the teacher's own tokenizer.
        identity_digest: as GetTeacher reports it.
        longest_token: bytes of text that one token stands for at most, where that is known.
        keeps_prefixes, deterministic: as in ``EngineDescription``.
    """

    name: str
    vocabulary_size: int
    max_top_k: int
    max_length: int
    tokenizer_hash: str
    identity_digest: str
    longest_token: int | None = None
    keeps_prefixes: bool = False
    deterministic: bool = False


@dataclass(frozen=True)
class StudentFacts:
    """A registered tokenizer that is not the teacher's.

    Attributes:
        vocabulary_size: one above its highest id.
        realigned: whether the teacher's tokenizer is of a kind that can be realigned.
    """

    vocabulary_size: int
    realigned: bool
