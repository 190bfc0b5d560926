"""What the student's tokenizer makes of text behind the tokens that are already there.

An automaton that is learnt as it is used. A *state* stands for the text to the left of a
position and the bytes that a path has written since; a teacher token leads to another.
Learnt states answer at array speed, and every step is asked of the tokenizer once.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from teacher_proto.types import Bool

from teacher_server.realign.pair.layout import Layout
from teacher_server.realign.pair.tables import PairTables
from teacher_server.realign.pair.vocabulary import incomplete_tail, is_mark
from teacher_server.realign.segmentation.canonical import (
    CONTRADICTS,
    NOTHING,
    Left,
    lefts_alone,
    tokens_at,
)
from teacher_server.realign.segmentation.memo import ABSENT, Memo
from teacher_server.realign.segmentation.spaces import FOLLOWING, ends_in_spaces

Int64 = NDArray[np.int64]
# States kept; beyond it the automaton starts anew with the next rollout.
MAX_STATES = 1_000_000
# Tokens of white space alone that are looked back at, besides the last.
MAX_RUN = 8
# The state with nothing to the left, or nothing that could join what follows.
ALONE = 0
_NO_BYTE = 256
_UNKNOWN = -1
# Instead of an answer: it depends on what follows; nothing is known of what follows.
OPEN, UNTOLD = -2, -3
# Kinds of states: the text ends with several spaces; of roots: with a mark.
_MARK, _SPACES = 1, 2
# What is known of a state: a line of the table each, since lines are read much faster.
_ANSWER, _LAST, _UNFINISHED, _KIND, _LOW, _HIGH, _COVERS = range(7)


class StudentStates:
    """States of one pair of tokenizers. A *root* has no bytes yet: only a left text."""

    def __init__(self, tables: PairTables) -> None:
        self._tables = tables
        student = tables.student
        # Row 256: no token before. Specials never join what precedes them.
        self._adjacent = np.vstack([student.adjacent, np.zeros((1, 256), np.bool_)])
        self._first = tables.teacher.first_byte.astype(np.int64)
        # Marks stand together in one pre-token, whatever tokens there are; so may a
        # character of which only the first bytes are known.
        self._marks = tables.teacher.begins_with_mark | tables.teacher.begins_with_part
        # How many of several spaces stand by themselves depends on what follows them.
        self._solid = tables.teacher.ordinary & ~tables.teacher.begins_with_space
        self._ordinary = tables.teacher.ordinary
        self.generation = 0  # counts how often the states' numbers began anew
        self.clear()

    def clear(self) -> None:
        self.generation += 1
        self._lefts: list[Left] = []
        self._data: list[bytes] = []
        self._known = np.zeros((7, 1024), np.int64)
        self._steps = Memo()
        self._roots: dict[Left, int] = {}
        self._root_of_token = np.full(self._tables.student.size, _UNKNOWN, np.int64)
        self._entered: dict[tuple[int, bytes], int] = {}
        self._followed: dict[tuple[int, int], int] = {}
        self._root(NOTHING)

    def trim(self) -> None:
        """Starts anew when there are too many; between rollouts only."""
        if len(self._data) > MAX_STATES:
            self.clear()

    def answer(self, state: Int64) -> Int64:
        """int64 [n]: the student's token at the position if the text ends with the state,
        or CONTRADICTS."""
        answers: Int64 = self._known[_ANSWER].take(state)
        return answers

    def spaces(self, state: Int64) -> Bool:
        """bool [n]: the text ends with several spaces, which what follows may cut otherwise."""
        spaces: Bool = self._known[_KIND].take(state) == _SPACES
        return spaces

    def answer_before(self, state: int, kinds: int) -> int:
        """The answer of one state when something follows; OPEN where it depends on what.

        Args:
            kinds: what may follow, as in ``OwnPairs.followed``.
        """
        key = state, kinds
        if key not in self._followed:
            follows = [one for place, one in enumerate((*FOLLOWING, b"")) if kinds >> place & 1]
            left, data = self._lefts[state], self._data[state]
            texts = [data + one for one in follows]
            answers = set(tokens_at(self._tables.student, [left] * len(texts), texts))
            answer = answers.pop() if len(answers) == 1 else OPEN
            # A token up to the end may go on with some of what follows, whatever does.
            if answer >= 0 and self._tables.student.lengths_list[answer] >= len(data):
                answer = OPEN
            self._followed[key] = answer
        return self._followed[key]

    def ends_within(self, state: int, answer: int) -> bool:
        """Whether the student's token, or CONTRADICTS, ends where the state's bytes do, or
        before."""
        return answer < 0 or self._tables.student.lengths_list[answer] <= len(self._data[state])

    def unfinished(self, state: Int64) -> Bool:
        """bool [n]: the text ends inside a character."""
        unfinished: Bool = self._known[_UNFINISHED].take(state) > 0
        return unfinished

    def covers(self, state: Int64) -> Bool:
        """bool [n]: the answer takes all of the state's bytes, so that what follows may
        still move where it ends."""
        covers: Bool = self._known[_COVERS].take(state) > 0
        return covers

    def intervals(self, state: Int64) -> Int64:
        """int64 [n, 2]: ranks of the student tokens that begin with the state's bytes."""
        missing = np.unique(state[self._known[_LOW].take(state) == _UNKNOWN])
        for one in missing.tolist():
            self._known[_LOW : _HIGH + 1, one] = self._tables.student.extensions(self._data[one])
        low, high = self._known[_LOW].take(state), self._known[_HIGH].take(state)
        return np.column_stack([low, high])

    def joins(self, state: Int64, ids: Int64) -> Bool:
        """bool [n, w]: whether teacher tokens may change what precedes them, or be read
        otherwise because of it."""
        last = self._known[_LAST].take(state) * self._adjacent.shape[1]
        joins: Bool = self._adjacent.take(last[:, None] + self._first.take(ids))
        kind = self._known[_KIND].take(state)
        marks = np.flatnonzero(kind == _MARK)
        joins[marks] |= self._marks[ids[marks]]
        spaces = np.flatnonzero(kind == _SPACES)
        joins[spaces] |= self._solid[ids[spaces]]
        joins &= self._ordinary.take(ids)
        return joins

    def step(self, state: Int64, token: Int64) -> Int64:
        """int64 [n]: the states once these teacher tokens are written."""
        size = self._tables.teacher.size
        keys = state * size + token
        found = self._steps.get(keys)
        missing = found == ABSENT
        if missing.any():
            new = np.unique(keys[missing])
            states, tokens = (part.tolist() for part in np.divmod(new, size))
            table = self._tables.teacher.token_bytes
            after = self._add(
                [self._lefts[one] for one in states],
                [self._data[one] + table[t] for one, t in zip(states, tokens, strict=True)],
            )
            self._steps.put(new, after)
            found = self._steps.get(keys)
        return found

    def enter(self, roots: Int64, data: Sequence[bytes]) -> Int64:
        """int64 [n]: the states with these bytes, behind a root where the two can join."""
        keys = list(zip(roots.tolist(), data, strict=True))
        entered = self._entered
        new = list(dict.fromkeys(key for key in keys if key not in entered))
        if new:
            befores = [root if self._joins_text(root, text) else ALONE for root, text in new]
            after = self._add([self._lefts[root] for root in befores], [text for _, text in new])
            entered.update(zip(new, after.tolist(), strict=True))
        return np.array([entered[key] for key in keys], np.int64)

    def before(self, layout: Layout, positions: Int64) -> Int64:
        """int64 [n]: the root of the student token before each position; ALONE after a
        special."""
        student = self._tables.student
        ids, special = layout.student_ids, layout.special
        before = np.maximum(positions - 1, 0)
        usable = (positions > 0) & ~special[before]
        token = ids[before].astype(np.int64)
        # The end of a character says nothing by itself: the whole character does.
        ends = usable & student.tail_only[token]
        known = self._root_of_token
        for one in np.unique(token[usable & ~ends & (known[token] == _UNKNOWN)]).tolist():
            known[one] = self._root(self._alone(student.token_bytes[one]))
        roots = np.where(usable & ~ends, known[token], ALONE)
        for index in np.flatnonzero(ends).tolist():
            offset = int(layout.student_offsets[positions[index]])
            start = offset - 1
            while start > 0 and layout.data[start] & 0xC0 == 0x80 and offset - start < 4:
                start -= 1
            roots[index] = self._root(self._alone(layout.data[start:offset]))
        # How several spaces are cut depends on all of them.
        several = usable & student.only_space[token] & (before > 0)
        several &= student.only_space[ids[np.maximum(before - 1, 0)]]
        for index in np.flatnonzero(several).tolist():
            run = [int(token[index])]
            for one in ids[max(int(before[index]) - MAX_RUN, 0) : before[index]][::-1].tolist():
                if not student.only_space[one]:
                    break
                run.insert(0, one)
            data = b"".join(student.token_bytes[one] for one in run)
            roots[index] = self._root(Left(data, tuple(run)))
        return roots

    def _alone(self, data: bytes) -> Left:
        return lefts_alone(self._tables.student, [data])[0]

    def _joins_text(self, root: int, text: bytes) -> bool:
        last, kind = self._known[_LAST, root], self._known[_KIND, root]
        return bool(
            self._adjacent[last, text[0]]
            or (kind == _MARK and is_mark(text.decode("utf-8", "ignore")[:1]))
            or (kind == _SPACES and not text[:1].isspace())
        )

    def _root(self, left: Left) -> int:
        if left not in self._roots:
            letter = left.data.decode("utf-8", "ignore")[-1:]
            # The end of a character alone may be that of a mark.
            mark = is_mark(letter) or (left != NOTHING and letter == "")
            kind = _SPACES if ends_in_spaces(left.data) else _MARK if mark else 0
            self._roots[left] = int(self._append([left], [b""], [CONTRADICTS], [kind])[0])
        return self._roots[left]

    def _add(self, lefts: list[Left], data: list[bytes]) -> Int64:
        answers = tokens_at(self._tables.student, lefts, data)
        both = zip(lefts, data, strict=True)
        kinds = [_SPACES if ends_in_spaces(left.data + text) else 0 for left, text in both]
        return self._append(lefts, data, answers, kinds)

    def _append(
        self, lefts: list[Left], data: list[bytes], answers: list[int], kinds: list[int]
    ) -> Int64:
        start, count = len(self._data), len(data)
        self._lefts += lefts
        self._data += data
        if start + count > self._known.shape[1]:
            room = np.zeros((len(self._known), 2 * (start + count)), np.int64)
            room[:, :start] = self._known[:, :start]
            self._known = room
        known = self._known[:, start : start + count]
        known[_ANSWER] = answers
        known[_LAST] = [
            text[-1] if text else _NO_BYTE
            for text in (one or left.data for one, left in zip(data, lefts, strict=True))
        ]
        known[_UNFINISHED] = [incomplete_tail(one) for one in data]
        known[_KIND] = kinds
        known[_LOW : _HIGH + 1] = _UNKNOWN
        lengths = self._tables.student.lengths[known[_ANSWER]]
        known[_COVERS] = (known[_ANSWER] >= 0) & (lengths == [len(one) for one in data])
        return np.arange(start, start + count)
