"""Look-ups over the tables of a pair: what a token of one side may be on the other.

S is the student, T the teacher; V_S and V_T are their vocabulary sizes. An *extension* of
a teacher token is a longer student token of which it may turn out to be the beginning.
Ranks are places in ``Vocabulary.order``, where all tokens with one prefix stand together.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from teacher_proto.types import Bool, Int32, Level

from teacher_server.realign.pair.added import AddedTexts
from teacher_server.realign.pair.levels import pair_level
from teacher_server.realign.pair.roles import TERMINATORS, counterpart
from teacher_server.realign.pair.spelling import equal_text
from teacher_server.realign.pair.static_tables import OFF_TRIE, TRIE_ROOT, StaticTables
from teacher_server.realign.pair.vocabulary import Vocabulary

Int64 = NDArray[np.int64]
# Unsettled mass that may still land on a token, as a part of the token's own mass, up to
# which the token's mass counts as known.
MAX_UNSETTLED = 0.05
# A teacher token that is extended in at most this share of its occurrences counts as never
# extended: by itself it settles which student token comes.
EXTENSION_LIMIT = 0.05
# A teacher token below a row's best ids is taken to have at most this many times the mean of
# such tokens (and at most the row's floor).
TAIL_SKEW = 20
# Numbers of a teacher whose log-probabilities are read of one row, at most: tokenizers that cut
# numbers into at most three digits have 1,110, with or without a space before them 2,220.
MOST_WIDE = 4096
# Teacher tokens that one student token of the model's own can be spread over.
MAX_DEPTH = 8


@dataclass(frozen=True)
class PairTables:
    """Static tables of a student and a teacher, with what follows from them.

    Attributes:
        student, teacher: as ``spelling.as_a_pair`` gives them.
    """

    student: Vocabulary
    teacher: Vocabulary
    static: StaticTables

    @cached_property
    def level(self) -> Level:
        return pair_level(self.student, self.teacher)

    @cached_property
    def added(self) -> AddedTexts:
        """Those of both sides that the other spells."""
        sides = (self.student, self.teacher)
        return AddedTexts(side.token_bytes[token] for side in sides for token in side.spelt)

    @property
    def first_student_token(self) -> Int32:
        """int32 [V_T], as in ``StaticTables``."""
        return self.static.first_student_token

    @cached_property
    def _edge_keys(self) -> Int64:
        return self.static.trie_edges[:, 0] * self.teacher.size + self.static.trie_edges[:, 1]

    @cached_property
    def _on_inner_edge(self) -> Bool:
        """bool [V_T]: on some edge of the prefix trie that does not leave its root."""
        inner = np.zeros(self.teacher.size, np.bool_)
        inner[self.static.trie_edges[self.static.trie_edges[:, 0] != TRIE_ROOT, 1]] = True
        return inner

    @cached_property
    def _after_root(self) -> Int64:
        """int64 [V_T]: the trie's node after the token alone, or OFF_TRIE."""
        nodes = np.full(self.teacher.size, OFF_TRIE)
        first = self.static.trie_edges[self.static.trie_edges[:, 0] == TRIE_ROOT]
        nodes[first[:, 1]] = first[:, 2]
        return nodes

    def trie_steps(self, node: Int64, token: Int64) -> Int64:
        """int64 [n]: the nodes of the prefix trie after one more teacher token; OFF_TRIE where
        a path leaves it."""
        after = np.where(node == TRIE_ROOT, self._after_root[token], OFF_TRIE)
        # Most tokens are on no edge beyond the first: they need not be looked up.
        on = np.flatnonzero((node != TRIE_ROOT) & (node != OFF_TRIE) & self._on_inner_edge[token])
        if len(on) and len(self._edge_keys):
            keys = node[on] * self.teacher.size + token[on]
            at = np.minimum(np.searchsorted(self._edge_keys, keys), len(self._edge_keys) - 1)
            found = self._edge_keys[at] == keys
            after[on[found]] = self.static.trie_edges[at[found], 2]
        return after

    def begin_student_token(self, token: Int64, after: Int64) -> Bool:
        """bool [n]: some student token's teacher encoding begins with these two tokens."""
        known = self.static.first_pairs
        if not len(known):
            return np.zeros(len(token), np.bool_)
        keys = token * self.teacher.size + after
        found: Bool = known[np.minimum(np.searchsorted(known, keys), len(known) - 1)] == keys
        return found

    @cached_property
    def may_extend(self) -> Bool:
        """bool [V_T]: tokens that are extended too often, by the estimate of
        ``extension_rates``, to settle by themselves which student token comes."""
        may_extend: Bool = self.partial_character | (self.static.extension_rate > EXTENSION_LIMIT)
        return may_extend

    @cached_property
    def has_extension(self) -> Bool:
        """bool [V_T]: some student token begins with the token's bytes and is longer, or its
        teacher encoding begins with the token and is longer."""
        low, high = self.student_range.T
        extended: Bool = (high - low > self._is_student_token) | (self.static.extension_rate > 0)
        return extended

    @cached_property
    def partial_character(self) -> Bool:
        """bool [V_T]: the token ends inside a UTF-8 character, and no student token has its
        bytes."""
        partial: Bool = self.teacher.ends_inside_character & ~self._is_student_token
        return partial

    @cached_property
    def _is_student_token(self) -> Bool:
        """bool [V_T]: the token's bytes are one student token."""
        known = np.maximum(self.first_student_token, 0)
        same_length = self.student.lengths[known] == self.teacher.lengths
        same: Bool = (self.first_student_token >= 0) & same_length
        return same

    @cached_property
    def student_range(self) -> Int64:
        """int64 [V_T, 2]: ranks [low, high) of the student tokens that begin with a teacher
        token's bytes."""
        ranges = np.zeros((self.teacher.size, 2), np.int64)
        for token in np.flatnonzero(self.teacher.ordinary).tolist():
            data = self.teacher.token_bytes[token]
            if data.strip(b"\xff"):
                ranges[token] = self.student.prefix_range(data)
        return ranges

    @cached_property
    def student_prefix_range(self) -> Int64:
        """int64 [V_S, 2]: ranks [low, high) of the student tokens that begin with a student
        token's bytes."""
        return prefix_ranges(self.student)

    @cached_property
    def student_has_longer(self) -> Bool:
        """bool [V_S]: another student token begins with this one's bytes, or equals them."""
        low, high = self.student_prefix_range.T
        has_longer: Bool = high - low > 1
        return has_longer

    @cached_property
    def longer_teacher_range(self) -> Int64:
        """int64 [V_T, 2]: ranks [low, high) of the teacher tokens that begin with a teacher
        token's bytes and are longer."""
        ranges = prefix_ranges(self.teacher)
        ordered = self.teacher.order
        ranges[ordered, 0] = _first_longer(ranges[ordered], self.teacher)
        return ranges

    @cached_property
    def longest_with_prefix(self) -> Int64:
        """int64 [V_T]: bytes of the longest teacher token that begins with this one's."""
        ordered = self.teacher.order
        ranges = prefix_ranges(self.teacher)[ordered]
        lengths = np.append(self.teacher.lengths[ordered], 0)
        longest = self.teacher.lengths.copy()
        longest[ordered] = np.maximum.reduceat(lengths, ranges.reshape(-1))[::2]
        return longest

    def ranks_of_rests(self, low: int, high: int, skip: int) -> tuple[int, int]:
        """Ranks of the student tokens that what is left of the teacher tokens of ranks [low, high),
        without their first ``skip`` bytes, may begin with."""
        texts = self.teacher.sorted_bytes
        lowest, highest = (texts[rank][skip : skip + 1] for rank in (low, high - 1))
        first, _ = self.student.prefix_range(lowest)
        if highest == b"\xff":
            return first, len(self.student.order)
        return first, self.student.prefix_range(highest)[1]

    @cached_property
    def teacher_token_count(self) -> Int64:
        """int64 [V_S]: how many teacher tokens have this one as their first student token."""
        known = self.first_student_token[self.first_student_token >= 0]
        return np.bincount(known, minlength=self.student.size).astype(np.int64)

    @cached_property
    def student_token_before_word(self) -> Int32:
        """int32 [V_T]: the first student token of a teacher token of several spaces when a word
        follows them, where it is another than by themselves; -1 elsewhere."""
        found = np.full(self.teacher.size, -1, np.int32)
        table = self.teacher.token_bytes
        spaces = [t for t, data in enumerate(table) if len(data) > 1 and not data.strip()]
        texts = [table[token] + b"x" for token in spaces]
        each = self.student.encoder.encode_each(texts)
        found[spaces] = [ids[0] if ids else -1 for ids in each]
        found[found == self.first_student_token] = -1
        return found

    @cached_property
    def count_behind_space(self) -> Int64:
        """int64 [V_S]: how many teacher tokens may give a student token that begins with a space,
        where the space is written already: those that begin with the bytes behind it. As
        ``teacher_token_count`` where that is more, and for other tokens."""
        counts = self.teacher_token_count.copy()
        table = self.student.token_bytes
        for token in range(self.student.size):
            data = table[token]
            if data[:1] == b" ":
                low, high = (
                    self.teacher.prefix_range(data[1:]) if data[1:] else (0, self.teacher.size)
                )
                counts[token] = max(int(counts[token]), high - low)
        return counts

    @cached_property
    def wide_ids(self) -> Int32:
        """int32 [E], ascending: the teacher's numbers (``Vocabulary.is_number``), where the student
        writes some of them with several tokens; none where there are more than MOST_WIDE. Before a
        number hundreds of them are about as likely, and the student's tokens are known only once
        all of these are."""
        numbers = np.flatnonzero(self.teacher.is_number).astype(np.int32)
        apart = [self.teacher.token_bytes[t] not in self.student.by_bytes for t in numbers.tolist()]
        return numbers if any(apart) and len(numbers) <= MOST_WIDE else numbers[:0]

    @cached_property
    def is_wide(self) -> Bool:
        """bool [V_T]: one of ``wide_ids``."""
        wide = np.zeros(self.teacher.size, np.bool_)
        wide[self.wide_ids] = True
        return wide

    @cached_property
    def not_wide_count(self) -> Int64:
        """int64 [V_S]: ``teacher_token_count`` without ``wide_ids``."""
        first = self.first_student_token[self.wide_ids]
        counted = np.bincount(first[first >= 0], minlength=self.student.size)
        return self.teacher_token_count - counted

    @cached_property
    def special_to_student(self) -> Int32:
        """int32 [V_T]: the student's id for a teacher's special token; -1 where there is
        none."""
        table = np.full(self.teacher.size, -1, np.int32)
        for token, role in self.teacher.roles.items():
            same = equal_text(token, self.teacher, self.student)
            if role in TERMINATORS:
                # Every terminator of the teacher ends the student's turn.
                ends = same is not None and role is self.student.roles[same] is TERMINATORS[0]
                found = same if ends else turn_end(self.student)
            else:
                found = counterpart(role, self.student.roles)
                if same is not None and (found is None or self.student.roles[same] is role):
                    found = same
            table[token] = -1 if found is None else found
        return table

    @cached_property
    def special_to_teacher(self) -> Mapping[int, int]:
        """The teacher's special id for a student's, where both have the role or the text."""
        pairs = {}
        for token, role in self.student.roles.items():
            found = counterpart(role, self.teacher.roles)
            same = equal_text(token, self.student, self.teacher)
            if same is not None and (found is None or self.teacher.roles[same] is role):
                found = same
            if found is not None:
                pairs[token] = found
        return pairs

    @cached_property
    def walk_depth(self) -> int:
        """How many teacher rows after the one that it starts from a path is followed over."""
        texts = [self.student.token_bytes[token] for token in self.student.spelt]
        longest = max((len(path) for path in self.teacher.encoder.encode_each(texts)), default=0)
        # A spelling may begin and end inside other tokens.
        return max(MAX_DEPTH, longest + 2)


def turn_end(vocabulary: Vocabulary) -> int | None:
    """The id that ends a turn, else the one that ends a text."""
    return counterpart(TERMINATORS[0], vocabulary.roles)


def prefix_ranges(vocabulary: Vocabulary) -> Int64:
    """int64 [V, 2]: ranks [low, high) of the tokens that begin with each token's bytes."""
    ranges = np.zeros((vocabulary.size, 2), np.int64)
    order = vocabulary.order.tolist()
    prefixes: list[tuple[int, bytes]] = []  # tokens that the current one begins with
    for rank, (token, data) in enumerate(zip(order, vocabulary.sorted_bytes, strict=True)):
        while prefixes and not data.startswith(prefixes[-1][1]):
            ranges[prefixes.pop()[0], 1] = rank
        same = prefixes and prefixes[-1][1] == data
        ranges[token, 0] = ranges[prefixes[-1][0], 0] if same else rank
        prefixes.append((token, data))
    for token, _ in prefixes:
        ranges[token, 1] = len(order)
    return ranges


def _first_longer(ranges: Int64, vocabulary: Vocabulary) -> Int64:
    """int64 [ordinary ids], by rank: the first rank of ``ranges`` [.., 2] with longer bytes."""
    low = ranges[:, 0].copy()
    texts = vocabulary.sorted_bytes
    for rank in range(len(low)):
        at = int(low[rank])
        while at < ranges[rank, 1] and texts[at] == texts[rank]:
            at += 1
        low[rank] = at
    return low
