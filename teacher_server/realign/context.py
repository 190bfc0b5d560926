"""What the student's tokenizer makes of text behind the tokens that are already there."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from teacher_proto.types import Bool

from teacher_server.realign.layout import Layout
from teacher_server.realign.resolve import MAX_KNOWN, NO_CONTEXT, Question, Resolver
from teacher_server.realign.tables import PairTables
from teacher_server.realign.vocabulary import is_mark

Int64 = NDArray[np.int64]


class StudentContext:
    """Answers for one pair; a context is a student token, NO_CONTEXT, or a number that
    stands for a character whose last token is only its end."""

    def __init__(self, tables: PairTables) -> None:
        self._tables = tables
        self._student = Resolver(tables.student)
        # Row 256: no token before. Specials never join what precedes them.
        self._joins = np.vstack([tables.student.adjacent, np.zeros((1, 256), np.bool_)])
        self._first = tables.teacher.first_byte.astype(np.int64)
        self._marks = tables.teacher.begins_with_mark
        self._ordinary = tables.teacher.ordinary
        self._numbers: dict[Question, int] = {}
        self._longer: dict[int, int] = {}

    def joins(self, context: Int64, ids: Int64) -> Bool:
        """bool [n, w]: whether teacher tokens may change what precedes them, or be read
        otherwise because of it."""
        last, mark = self._last(context)
        joins = self._joins[last[:, None], self._first[ids]]
        joins |= mark[:, None] & self._marks[ids]
        joins &= self._ordinary[ids]
        return joins

    def joins_byte(self, last: Int64, ids: Int64) -> Bool:
        """bool [n, w]: some student token holds the byte and then the token's first."""
        joins: Bool = self._joins[last[:, None], self._first[ids]] & self._ordinary[ids]
        return joins

    def before(self, layout: Layout, positions: Int64) -> Int64:
        """int64 [n]: the student token before each position; NO_CONTEXT after a special."""
        student = self._tables.student
        ids, special = layout.student_ids, layout.special
        before = np.maximum(positions - 1, 0)
        usable = (positions > 0) & ~special[before]
        context = np.where(usable, ids[before], NO_CONTEXT).astype(np.int64)
        # The end of a character says nothing by itself: the whole character does.
        ends = usable & student.tail_only[np.maximum(context, 0)]
        for index in np.flatnonzero(ends).tolist():
            offset = int(layout.student_offsets[positions[index]])
            start = offset - 1
            while start > 0 and layout.data[start] & 0xC0 == 0x80 and offset - start < 4:
                start -= 1
            context[index] = self._student.context(layout.data[start:offset])
        return context

    def _last(self, context: Int64) -> tuple[Int64, Bool]:
        """(last byte, whether it ends a mark); byte 256 where there is no token before."""
        student = self._tables.student
        token = np.where(context < student.size, np.maximum(context, 0), 0)
        last, mark = student.last_byte[token].astype(np.int64), student.ends_with_mark[token]
        for index in np.flatnonzero(context >= student.size).tolist():
            text = self._student.text(int(context[index]))
            last[index] = text[-1]
            letter = text.decode("utf-8", "ignore")
            mark[index] = not letter.isalnum()
        none = context == NO_CONTEXT
        return np.where(none, 256, last), mark & ~none

    def _befores(self, context: Int64, data: list[bytes]) -> list[int]:
        """The token before each, where they can join; else NO_CONTEXT."""
        last, mark = self._last(context)
        joins = self._joins[last, np.array([one[0] for one in data], np.int64)]
        # Marks stand together in one pre-token, whatever tokens there are.
        for index in np.flatnonzero(mark).tolist():
            joins[index] |= is_mark(data[index].decode("utf-8", "ignore")[:1])
        befores: list[int] = np.where(joins, context, NO_CONTEXT).tolist()
        return befores

    def answers(self, context: Int64, data: list[bytes]) -> list[int]:
        """The student's token where each begins."""
        return self._student.answers(zip(self._befores(context, data), data, strict=True))

    def longer_answers(
        self, context: Int64, texts: list[bytes], line: Int64, token: Int64
    ) -> list[int]:
        """The student's token where ``texts[line]`` begins, once ``token`` follows it."""
        if len(self._longer) > MAX_KNOWN:
            self._numbers.clear()
            self._longer.clear()
        pairs = zip(self._befores(context, texts), texts, strict=True)
        numbers = [self._numbers.setdefault(pair, len(self._numbers)) for pair in pairs]
        keys = (np.array(numbers, np.int64)[line] * self._tables.teacher.size + token).tolist()
        new = [index for index, key in enumerate(keys) if key not in self._longer]
        if new:
            befores = self._befores(context, texts)
            table = self._tables.teacher.token_bytes
            asked = [
                (befores[line[index]], texts[line[index]] + table[token[index]]) for index in new
            ]
            found = zip(new, self._student.answers(asked), strict=True)
            self._longer.update((keys[index], answer) for index, answer in found)
        return [self._longer[key] for key in keys]
