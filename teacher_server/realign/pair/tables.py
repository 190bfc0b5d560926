"""What is fixed for a pair of tokenizers, built once.

Legend: S student, T teacher; V_S, V_T their ids. A *path* is a sequence of
teacher tokens that begins where a student token begins.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from teacher_proto.types import Bool, Float32, Int32, Level

from teacher_server.realign.pair.levels import pair_level
from teacher_server.realign.pair.roles import TERMINATORS, counterpart
from teacher_server.realign.pair.vocabulary import Vocabulary

Int64 = NDArray[np.int64]
# Unsettled mass, as a part of a token's own, up to which the token counts as known.
CERTAIN = 0.05
# Estimated leak (``leak_rates``) up to which a teacher token settles a student token.
SETTLED_LEAK = 0.05
# Byte-level vocabularies begin with the 256 bytes, in no order of frequency.
BYTES = 256
# Power by which a token's frequency falls with its rank: on English, code and Chinese,
# 1.2 holds back about half as much mass needlessly as 1.0 does, and misses hardly more.
ZIPF = 1.2
# States of the prefix trie: its root, and no state.
ROOT = 0
NO_STATE = -1


@dataclass(frozen=True)
class StaticTables:
    """What is kept on disk.

    Attributes:
        phi0: int32 [V_T], the first student token of a teacher token's bytes, by
            themselves; -1 where there is none.
        edges: int64 [n, 3] sorted: state, teacher token, next state. The paths that
            are proper prefixes of a student token's teacher encoding.
        leak: float32 [V_T], how often a path goes on to a longer student token after
            this teacher token, as a multiple of how often it does not, estimated
            from the order of the student's vocabulary (``leak_rates``).
        first: int32 [V_S], the first teacher token of a student token's bytes; -1 where
            there is none.
        pairs: int64 [p] sorted: token * V_T + next token, the first two teacher tokens
            of the student tokens that have several.
    """

    phi0: Int32
    edges: Int64
    leak: Float32
    first: Int32
    pairs: Int64


@dataclass(frozen=True)
class PairTables:
    """Static tables of a student and a teacher, with what follows from them."""

    student: Vocabulary
    teacher: Vocabulary
    static: StaticTables

    @cached_property
    def level(self) -> Level:
        return pair_level(self.student, self.teacher)

    @property
    def phi0(self) -> Int32:
        return self.static.phi0

    @cached_property
    def edge_keys(self) -> Int64:
        return self.static.edges[:, 0] * self.teacher.size + self.static.edges[:, 1]

    @cached_property
    def _inner(self) -> Bool:
        """bool [V_T]: on some edge of the trie that does not leave its root."""
        inner = np.zeros(self.teacher.size, np.bool_)
        inner[self.static.edges[self.static.edges[:, 0] != ROOT, 1]] = True
        return inner

    @cached_property
    def _begun(self) -> Int64:
        """int64 [V_T]: the trie's state after the token alone, or NO_STATE."""
        begun = np.full(self.teacher.size, NO_STATE)
        first = self.static.edges[self.static.edges[:, 0] == ROOT]
        begun[first[:, 1]] = first[:, 2]
        return begun

    def steps(self, state: Int64, token: Int64) -> Int64:
        """int64 [n]: the trie's states after one more token; NO_STATE where a path leaves it."""
        after = np.where(state == ROOT, self._begun[token], NO_STATE)
        # Most tokens are on no edge beyond the first: they need not be looked up.
        on = np.flatnonzero((state != ROOT) & (state != NO_STATE) & self._inner[token])
        if len(on) and len(self.edge_keys):
            keys = state[on] * self.teacher.size + token[on]
            at = np.minimum(np.searchsorted(self.edge_keys, keys), len(self.edge_keys) - 1)
            found = self.edge_keys[at] == keys
            after[on[found]] = self.static.edges[at[found], 2]
        return after

    @cached_property
    def leaky(self) -> Bool:
        """bool [V_T]: seen alone, the token does not settle which student token comes.

        A token that is hardly ever the beginning of a longer student token does.
        """
        leaky: Bool = self.parts | (self.static.leak > SETTLED_LEAK)
        return leaky

    def known_pairs(self, token: Int64, after: Int64) -> Bool:
        """bool [n]: some student token's teacher encoding begins with the two."""
        known = self.static.pairs
        if not len(known):
            return np.zeros(len(token), np.bool_)
        keys = token * self.teacher.size + after
        found: Bool = known[np.minimum(np.searchsorted(known, keys), len(known) - 1)] == keys
        return found

    @cached_property
    def extended(self) -> Bool:
        """bool [V_T]: some student token begins with the token's bytes and goes on, or with
        the token in the teacher's encoding."""
        known = np.maximum(self.phi0, 0)
        low, high = self.bytes_interval.T
        same = (self.phi0 >= 0) & (self.student.lengths[known] == self.teacher.lengths)
        extended: Bool = (high - low > same) | (self.static.leak > 0)
        return extended

    @cached_property
    def parts(self) -> Bool:
        """bool [V_T]: ends inside a character, and the student has no such part."""
        known = np.maximum(self.phi0, 0)
        whole = (self.phi0 >= 0) & (self.student.lengths[known] == self.teacher.lengths)
        parts: Bool = self.teacher.ends_inside_character & ~whole
        return parts

    @cached_property
    def bytes_interval(self) -> Int64:
        """int64 [V_T, 2]: ranks of the student tokens that begin with the token's bytes."""
        intervals = np.zeros((self.teacher.size, 2), np.int64)
        for token in np.flatnonzero(self.teacher.ordinary).tolist():
            data = self.teacher.token_bytes[token]
            if data.strip(b"\xff"):
                intervals[token] = self.student.extensions(data)
        return intervals

    @cached_property
    def student_interval(self) -> Int64:
        """int64 [V_S, 2]: ranks of the student tokens that begin with this one's bytes."""
        return own_intervals(self.student)

    @cached_property
    def has_longer(self) -> Bool:
        """bool [V_S]: another student token begins with this one's bytes, or equals them."""
        low, high = self.student_interval.T
        has_longer: Bool = high - low > 1
        return has_longer

    @cached_property
    def longer(self) -> Int64:
        """int64 [V_T, 2]: ranks of the teacher tokens that go on beyond this one's bytes."""
        intervals = own_intervals(self.teacher)
        lengths = self.teacher.lengths[self.teacher.order]
        intervals[self.teacher.order, 0] = _skip_equal(
            intervals[self.teacher.order], lengths, self.teacher
        )
        return intervals

    @cached_property
    def reach(self) -> Int64:
        """int64 [V_T]: bytes of the longest teacher token that begins with this one's."""
        intervals = own_intervals(self.teacher)[self.teacher.order]
        lengths = np.append(self.teacher.lengths[self.teacher.order], 0)
        reach = self.teacher.lengths.copy()
        reach[self.teacher.order] = np.maximum.reduceat(lengths, intervals.reshape(-1))[::2]
        return reach

    @cached_property
    def multiplicity(self) -> Int64:
        """int64 [V_S]: teacher tokens whose bytes begin with this student token."""
        known = self.phi0[self.phi0 >= 0]
        return np.bincount(known, minlength=self.student.size).astype(np.int64)

    @cached_property
    def special_to_student(self) -> Int32:
        """int32 [V_T]: the student's id for a teacher's special token; -1 where none."""
        table = np.full(self.teacher.size, -1, np.int32)
        for token, role in self.teacher.roles.items():
            if role in TERMINATORS:
                # All terminators of the teacher end the student's turn.
                found = turn_end(self.student)
            else:
                found = counterpart(role, self.student.roles)
            table[token] = -1 if found is None else found
        return table

    @cached_property
    def special_to_teacher(self) -> Mapping[int, int]:
        """Student's special id -> teacher's, where both have the role."""
        pairs = {}
        for token, role in self.student.roles.items():
            found = counterpart(role, self.teacher.roles)
            if found is not None:
                pairs[token] = found
        return pairs


def turn_end(vocabulary: Vocabulary) -> int | None:
    """The id that ends a turn, else the one that ends a text."""
    return counterpart(TERMINATORS[0], vocabulary.roles)


def own_intervals(vocabulary: Vocabulary) -> Int64:
    """int64 [V, 2]: ranks [low, high) of the tokens that begin with each token's bytes."""
    intervals = np.zeros((vocabulary.size, 2), np.int64)
    order = vocabulary.order.tolist()
    open_tokens: list[tuple[int, bytes]] = []
    for rank, (token, data) in enumerate(zip(order, vocabulary.sorted_bytes, strict=True)):
        while open_tokens and not data.startswith(open_tokens[-1][1]):
            intervals[open_tokens.pop()[0], 1] = rank
        same = open_tokens and open_tokens[-1][1] == data
        intervals[token, 0] = intervals[open_tokens[-1][0], 0] if same else rank
        open_tokens.append((token, data))
    for token, _ in open_tokens:
        intervals[token, 1] = len(order)
    return intervals


def _skip_equal(intervals: Int64, lengths: Int64, vocabulary: Vocabulary) -> Int64:
    """First rank with longer bytes, for every rank in order."""
    low = intervals[:, 0].copy()
    texts = vocabulary.sorted_bytes
    for rank in range(len(low)):
        at = int(low[rank])
        while at < intervals[rank, 1] and texts[at] == texts[rank]:
            at += 1
        low[rank] = at
    return low


def build_static(student: Vocabulary, teacher: Vocabulary) -> StaticTables:
    """The tables of a pair, from their encoders alone."""
    ordinary = np.flatnonzero(teacher.ordinary)
    encoded = student.encoder.encode_each([teacher.token_bytes[t] for t in ordinary.tolist()])
    phi0 = np.full(teacher.size, -1, np.int32)
    phi0[ordinary] = [ids[0] if ids else -1 for ids in encoded]
    texts = np.flatnonzero(student.ordinary)
    paths = teacher.encoder.encode_each([student.token_bytes[t] for t in texts.tolist()])
    leak = leak_rates(student, teacher, phi0, texts, paths)
    first = np.full(student.size, -1, np.int32)
    first[texts] = [path[0] if path else -1 for path in paths]
    pairs = {path[0] * teacher.size + path[1] for path in paths if len(path) > 1}
    return StaticTables(phi0, _prefix_trie(paths), leak, first, np.array(sorted(pairs), np.int64))


def _prefix_trie(paths: Sequence[Sequence[int]]) -> Int64:
    edges: dict[tuple[int, int], int] = {}
    for path in paths:
        state = ROOT
        for token in path[:-1]:
            state = edges.setdefault((state, token), len(edges) + 1)
    rows = sorted((state, token, after) for (state, token), after in edges.items())
    return np.array(rows, np.int64).reshape(-1, 3)


def leak_rates(
    student: Vocabulary,
    teacher: Vocabulary,
    phi0: Int32,
    tokens: Int64,
    paths: Sequence[Sequence[int]],
) -> Float32:
    """float32 [V_T]: frequency of the longer student tokens over that of the token itself.

    BPE adds the most frequent pairs first, so an id's place in the vocabulary is its
    rank by frequency; frequency is taken to fall with the power ZIPF of the rank.

    Args:
        tokens, paths: ordinary student ids and their teacher encodings.
    """
    place = np.cumsum(student.ordinary)
    frequency = np.maximum(place, BYTES) ** -ZIPF
    longer = np.zeros(teacher.size)
    for token, path in zip(tokens.tolist(), paths, strict=True):
        if len(path) > 1:
            longer[path[0]] += frequency[token]
    own = np.where(phi0 >= 0, frequency[np.maximum(phi0, 0)], 1.0)
    return (longer / own).astype(np.float32)
