"""What the student's tokenizer makes of a text that follows its tokens so far.

An automaton over the bytes that a path writes, learnt as it is used. A *state* stands for
the text to the left of a position, as the student has cut it, and for the bytes that a path
has written since; a teacher token leads from one state to another. The *answer* of a state
is the student's token at the position if the text ended there, or CONTRADICTS: the student
would then have cut the text to the left in another way.

The tokenizer is asked about each step once; learnt steps are looked up as arrays.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from teacher_proto.types import Bool

from teacher_server.realign.pair.layout import Layout
from teacher_server.realign.pair.tables import PairTables
from teacher_server.realign.pair.vocabulary import incomplete_tail, is_symbol
from teacher_server.realign.segmentation.canonical import (
    CONTRADICTS,
    END,
    NO_CONTEXT,
    LeftContext,
    contexts_of,
    next_tokens,
)
from teacher_server.realign.segmentation.left_context import LeftContexts
from teacher_server.realign.segmentation.memo import Memo
from teacher_server.realign.segmentation.rests import SPAN, NumberedTexts
from teacher_server.realign.segmentation.spaces import FOLLOWERS, ends_in_spaces

Int64 = NDArray[np.int64]
# States kept; when there are more, the automaton starts anew with the next rollout.
MAX_STATES = 1_000_000
# The state with no text to the left, or none that could join what follows, and no bytes.
EMPTY_STATE = 0
# Instead of an answer: it depends on what follows.
OPEN = -2
# Above every set of what may follow.
_SETS = END << 1
_NO_BYTE = 256
_UNKNOWN = -1
# Kinds of states: the text ends in several spaces; for initial states: in a symbol.
_SYMBOL, _SPACES = 1, 2
# What is known of a state: a row of the table each, since rows are read much faster.
_ANSWER, _LAST, _INSIDE, _KIND, _LOW, _HIGH, _COVERED, _BEGUN = range(8)


class StudentStates:
    """The states of one pair of tokenizers. An *initial* state has a left context alone:
    no path has written anything yet."""

    def __init__(self, tables: PairTables) -> None:
        self._tables = tables
        student = tables.student
        # Row 256: no byte before. Special tokens never join what precedes them.
        self._adjacent = np.vstack([student.adjacent, np.zeros((1, 256), np.bool_)])
        self._first = tables.teacher.first_byte.astype(np.int64)
        # Symbols stand together in one pre-token, whatever tokens there are; so may a
        # character of which only the first bytes are known.
        self._symbols = tables.teacher.begins_with_symbol | tables.teacher.only_character_start
        self._continues = (tables.teacher.first_byte & 0xC0) == 0x80
        self._ordinary = tables.teacher.ordinary
        self._left_contexts = LeftContexts(student)
        self._added = student.added
        self.generation = 0  # counts how often the states' numbers began anew
        self.clear()

    def clear(self) -> None:
        """Forgets all states."""
        self.generation += 1
        self._contexts: list[LeftContext] = []
        self._data: list[bytes] = []
        self._known = np.zeros((8, 1024), np.int64)
        self._steps = Memo()
        self._initial: dict[LeftContext, int] = {}
        self._initial_of_token = np.full(self._tables.student.size, _UNKNOWN, np.int64)
        self._texts, self._entered = NumberedTexts(self._tables.teacher), Memo()
        self._followed = Memo()
        self._initial_state(NO_CONTEXT)

    def trim(self) -> None:
        """Starts anew when there are too many states; between rollouts only."""
        if len(self._data) > MAX_STATES:
            self.clear()

    def answer(self, state: Int64) -> Int64:
        """int64 [n]: the student's token at the position if the text ends with the state,
        or CONTRADICTS."""
        answers: Int64 = self._known[_ANSWER].take(state)
        return answers

    def end_in_spaces(self, state: Int64) -> Bool:
        """bool [n]: the text ends in several spaces, which what follows may have cut in
        another way."""
        spaces: Bool = self._known[_KIND].take(state) == _SPACES
        return spaces

    def answers_if_followed(self, state: Int64, followers: Int64) -> Int64:
        """int64 [n]: the answers of states when something follows them; OPEN where they depend
        on what.

        Args:
            followers: int64 [n], the sets of what may follow, as in
                ``canonical.possible_followers``.
        """

        def ask(keys: list[int]) -> Int64:
            each = (divmod(key, _SETS) for key in keys)
            return np.array([self._answer_if_followed(*one) - OPEN for one in each], np.int64)

        return self._followed.get_or_ask(state * _SETS + followers, ask) + OPEN

    def answer_if_followed(self, state: int, followers: int) -> int:
        """``answers_if_followed`` of one state."""
        return int(self.answers_if_followed(np.array([state]), np.array([followers]))[0])

    def _answer_if_followed(self, state: int, followers: int) -> int:
        follows = [one for place, one in enumerate((*FOLLOWERS, b"")) if followers >> place & 1]
        context, data = self._contexts[state], self._data[state]
        texts = [data + one for one in follows]
        answers = set(next_tokens(self._tables.student, [context] * len(texts), texts))
        answer = answers.pop() if len(answers) == 1 else OPEN
        # A token that reaches the end may take in some of what follows, whatever it is.
        if answer >= 0 and self._tables.student.lengths_list[answer] >= len(data):
            return OPEN
        return answer

    def ends_within(self, state: int, answer: int) -> bool:
        """Whether the student's token ``answer`` ends where the state's bytes do or before;
        CONTRADICTS always does."""
        return answer < 0 or self._tables.student.lengths_list[answer] <= len(self._data[state])

    def inside_character(self, state: Int64) -> Bool:
        """bool [n]: the text ends inside a UTF-8 character."""
        inside: Bool = self._known[_INSIDE].take(state) > 0
        return inside

    def begins_added(self, state: Int64) -> Bool:
        """bool [n]: the text ends in what may become an added token of the student, which the
        teacher spells, and the answer would then be another."""
        begun: Bool = self._known[_BEGUN].take(state) > 0
        return begun

    def answer_covers(self, state: Int64) -> Bool:
        """bool [n]: the answer takes all of the state's bytes, so that what follows may
        still move where it ends."""
        covers: Bool = self._known[_COVERED].take(state) > 0
        return covers

    def prefix_ranges(self, state: Int64) -> Int64:
        """int64 [n, 2]: ranks [low, high) of the student tokens that begin with the state's
        bytes."""
        missing = np.unique(state[self._known[_LOW].take(state) == _UNKNOWN])
        for one in missing.tolist():
            self._known[_LOW : _HIGH + 1, one] = self._tables.student.prefix_range(self._data[one])
        low, high = self._known[_LOW].take(state), self._known[_HIGH].take(state)
        return np.column_stack([low, high])

    def may_join(self, state: Int64, ids: Int64) -> Bool:
        """bool [n, w]: whether the teacher tokens ``ids`` [n, w] may change how the text
        before them is cut, or be cut in another way because of it."""
        last = self._known[_LAST].take(state) * self._adjacent.shape[1]
        joins: Bool = self._adjacent.take(last[:, None] + self._first.take(ids))
        kind = self._known[_KIND].take(state)
        symbols = np.flatnonzero(kind == _SYMBOL)
        joins[symbols] |= self._symbols[ids[symbols]]
        spaces = np.flatnonzero(kind == _SPACES)
        joins[spaces] = True
        # A character goes on, whether or not a token holds both bytes.
        inside = np.flatnonzero(self._known[_INSIDE].take(state))
        joins[inside] |= self._continues[ids[inside]]
        joins &= self._ordinary.take(ids)
        return joins

    def step(self, state: Int64, token: Int64) -> Int64:
        """int64 [n]: the states once these teacher tokens are written."""
        size = self._tables.teacher.size
        table = self._tables.teacher.token_bytes

        def ask(keys: list[int]) -> Int64:
            each = [divmod(key, size) for key in keys]
            contexts = [self._contexts[state] for state, _ in each]
            return self._add(contexts, [self._data[state] + table[token] for state, token in each])

        return self._steps.get_or_ask(state * size + token, ask)

    def enter(self, initial: Int64, data: Sequence[bytes]) -> Int64:
        """int64 [n]: the states with these bytes; with the initial states' left contexts
        where the two can join, else without any."""
        return self._enter(initial, self._texts.numbers(data))

    def enter_rests(self, initial: Int64, token: Int64, skip: Int64) -> tuple[Int64, Int64]:
        """(state, rest), int64 [n] each: ``enter`` with the teacher tokens without their first
        ``skip`` bytes, and the teacher tokens with the bytes that are left; -1 where there is
        none."""
        number = self._texts.rests(token, skip)
        return self._enter(initial, number), self._texts.token(number)

    def _enter(self, initial: Int64, number: Int64) -> Int64:
        """As ``enter``, with the texts of these numbers."""

        def ask(keys: list[int]) -> Int64:
            new = [(key // SPAN, self._texts.text(key % SPAN)) for key in keys]
            befores = (
                state if self._may_join_text(state, text) else EMPTY_STATE for state, text in new
            )
            contexts = [self._contexts[state] for state in befores]
            return self._add(contexts, [text for _, text in new])

        return self._entered.get_or_ask(initial * SPAN + number, ask)

    def initial(self, layout: Layout, positions: Int64) -> Int64:
        """int64 [n]: the initial state of each position, with its left context as
        ``LeftContexts`` has it; EMPTY_STATE without any."""
        ids, begins = layout.student_ids, self._left_contexts.begins(layout, positions)
        counts = positions - begins
        token = ids[np.maximum(positions - 1, 0)].astype(np.int64)
        known = self._initial_of_token
        table = self._tables.student.token_bytes
        for one in np.unique(token[(counts == 1) & (known[token] == _UNKNOWN)]).tolist():
            (context,) = contexts_of(self._tables.student, [table[one]])
            known[one] = self._initial_state(context)
        initial = np.where(counts == 1, known[token], EMPTY_STATE)
        for index in np.flatnonzero(counts > 1).tolist():
            run = tuple(ids[begins[index] : positions[index]].tolist())
            data = b"".join(table[one] for one in run)
            initial[index] = self._initial_state(LeftContext(data, run))
        return initial

    def _may_join_text(self, state: int, text: bytes) -> bool:
        """As ``may_join``, for bytes that need not be a token."""
        last, kind = self._known[_LAST, state], self._known[_KIND, state]
        return bool(
            self._adjacent[last, text[0]]
            or (kind == _SYMBOL and is_symbol(text.decode("utf-8", "ignore")[:1]))
            or kind == _SPACES
        )

    def _initial_state(self, context: LeftContext) -> int:
        if context not in self._initial:
            last = context.data.decode("utf-8", "ignore")[-1:]
            # The end of a character alone may be that of a symbol.
            symbol = is_symbol(last) or (context != NO_CONTEXT and last == "")
            kind = _SPACES if ends_in_spaces(context.data) else _SYMBOL if symbol else 0
            state = self._append([context], [b""], [CONTRADICTS], [kind])
            self._initial[context] = int(state[0])
        return self._initial[context]

    def _add(self, contexts: list[LeftContext], data: list[bytes]) -> Int64:
        """Asks the tokenizer for the answers of new states, and keeps them."""
        answers = next_tokens(self._tables.student, contexts, data)
        both = zip(contexts, data, strict=True)
        kinds = [_SPACES if ends_in_spaces(context.data + text) else 0 for context, text in both]
        return self._append(contexts, data, answers, kinds)

    def _may_be_cut_short(self, answer: int, data: bytes, before: bytes) -> bool:
        """Whether an added token of the student has begun at the end of a state's bytes, and
        its answer reaches into it, or as white space up to it; or in the text ``before`` them,
        which the student would then have cut in another way."""
        begun = self._added.begun(before + data)
        if not begun or answer < 0 or begun > len(data):
            return begun > 0
        text, apart = self._tables.student.token_bytes[answer], data[: len(data) - begun]
        return len(text) > len(apart) or apart.isspace()

    def _append(
        self, contexts: list[LeftContext], data: list[bytes], answers: list[int], kinds: list[int]
    ) -> Int64:
        start, count = len(self._data), len(data)
        self._contexts += contexts
        self._data += data
        if start + count > self._known.shape[1]:
            room = np.zeros((len(self._known), 2 * (start + count)), np.int64)
            room[:, :start] = self._known[:, :start]
            self._known = room
        known = self._known[:, start : start + count]
        known[_ANSWER] = answers
        known[_LAST] = [
            text[-1] if text else _NO_BYTE
            for text in (one or context.data for one, context in zip(data, contexts, strict=True))
        ]
        known[_INSIDE] = [incomplete_tail(one) for one in data]
        known[_KIND] = kinds
        each = zip(answers, data, contexts, strict=True)
        known[_BEGUN] = [self._may_be_cut_short(one, text, at.data) for one, text, at in each]
        known[_LOW : _HIGH + 1] = _UNKNOWN
        lengths = self._tables.student.lengths[known[_ANSWER]]
        known[_COVERED] = (known[_ANSWER] >= 0) & (lengths == [len(one) for one in data])
        return np.arange(start, start + count)
