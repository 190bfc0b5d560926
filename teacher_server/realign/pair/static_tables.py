"""The tables of a pair that take seconds to build: made once, kept on disk by ``cache``.

Legend: S student, T teacher; V_S and V_T are their vocabulary sizes. A *path* is a
sequence of teacher tokens that begins where a student token begins.

The prefix trie holds the paths that may still turn out to be a student token of several
teacher tokens: every proper prefix of a student token's teacher encoding is a node.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from teacher_proto.types import Float32, Int32

from teacher_server.realign.pair.vocabulary import Vocabulary

Int64 = NDArray[np.int64]
# Byte-level vocabularies begin with the 256 bytes, in no order of frequency.
BYTE_TOKENS = 256
# Power by which a token's frequency falls with its rank: on English, code and Chinese,
# 1.2 holds back about half as much mass needlessly as 1.0 does, and misses hardly more.
ZIPF_POWER = 1.2
# Nodes of the prefix trie: its root (an empty path), and a path that the trie does not hold.
TRIE_ROOT = 0
OFF_TRIE = -1


@dataclass(frozen=True)
class StaticTables:
    """What is kept on disk.

    Attributes:
        first_student_token: int32 [V_T], the first of the student tokens that a teacher
            token's bytes, by themselves, are encoded to; -1 where there is none.
        trie_edges: int64 [n, 3] sorted: node of the prefix trie, teacher token, next node.
        extension_rate: float32 [V_T], how often a teacher token is only the beginning of a
            longer student token, as a multiple of how often it is not: an estimate from
            the order of the student's vocabulary (``extension_rates``).
        first_teacher_token: int32 [V_S], the first of the teacher tokens that a student
            token's bytes are encoded to; -1 where there is none.
        first_pairs: int64 [p] sorted: token * V_T + next token, the first two teacher
            tokens of the student tokens that are encoded to several.
    """

    first_student_token: Int32
    trie_edges: Int64
    extension_rate: Float32
    first_teacher_token: Int32
    first_pairs: Int64


def build_static(student: Vocabulary, teacher: Vocabulary) -> StaticTables:
    """Builds the tables of a pair: encodes every token with the other side's tokenizer."""
    ordinary = np.flatnonzero(teacher.ordinary)
    encoded = student.encoder.encode_each([teacher.token_bytes[t] for t in ordinary.tolist()])
    first_student_token = np.full(teacher.size, -1, np.int32)
    first_student_token[ordinary] = [ids[0] if ids else -1 for ids in encoded]
    tokens = np.flatnonzero(student.ordinary)
    paths = teacher.encoder.encode_each([student.token_bytes[t] for t in tokens.tolist()])
    first_teacher_token = np.full(student.size, -1, np.int32)
    first_teacher_token[tokens] = [path[0] if path else -1 for path in paths]
    pairs = {path[0] * teacher.size + path[1] for path in paths if len(path) > 1}
    return StaticTables(
        first_student_token=first_student_token,
        trie_edges=_prefix_trie(paths),
        extension_rate=extension_rates(student, teacher, first_student_token, tokens, paths),
        first_teacher_token=first_teacher_token,
        first_pairs=np.array(sorted(pairs), np.int64),
    )


def _prefix_trie(paths: Sequence[Sequence[int]]) -> Int64:
    edges: dict[tuple[int, int], int] = {}
    for path in paths:
        node = TRIE_ROOT
        for token in path[:-1]:
            node = edges.setdefault((node, token), len(edges) + 1)
    rows = sorted((node, token, after) for (node, token), after in edges.items())
    return np.array(rows, np.int64).reshape(-1, 3)


def extension_rates(
    student: Vocabulary,
    teacher: Vocabulary,
    first_student_token: Int32,
    tokens: Int64,
    paths: Sequence[Sequence[int]],
) -> Float32:
    """float32 [V_T]: frequency of the longer student tokens over that of the token itself.

    BPE adds the most frequent pairs first, so an id's place in the vocabulary is its rank
    by frequency; frequency is taken to fall with the power ZIPF_POWER of the rank. Added
    tokens have no such rank, and count as never written.

    Args:
        tokens, paths: ordinary student ids and their teacher encodings.
    """
    place = np.cumsum(student.ordinary & ~student.is_spelt)
    frequency = np.maximum(place, BYTE_TOKENS) ** -ZIPF_POWER
    longer = np.zeros(teacher.size)
    for token, path in zip(tokens.tolist(), paths, strict=True):
        if len(path) > 1 and token not in student.spelt:
            longer[path[0]] += frequency[token]
    known = first_student_token >= 0
    own = np.where(known, frequency[np.maximum(first_student_token, 0)], 1.0)
    return (longer / own).astype(np.float32)
