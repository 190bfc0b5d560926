"""A text as a rollout of the student, and its positions as the reference takes them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate

from benchmarks.realign.reference.pasts import Window
from benchmarks.realign.reference.raw_tokenizer import RawTokenizer

# Bytes that a window has at least, where the rollout is as long.
LEAST_BYTES, MOST_BYTES = 32, 400
SHORT_BYTES = 100
# Bytes before a position whose tokens a window must have as the whole rollout has them.
FREE_BYTES = 24


@dataclass(frozen=True)
class Rollout:
    """``text`` in both tokenizers; the teacher has read ``before`` already."""

    text: str
    student: RawTokenizer
    teacher: RawTokenizer
    before: tuple[int, ...]

    @cached_property
    def data(self) -> bytes:
        return self.text.encode()

    @cached_property
    def student_ids(self) -> list[int]:
        return self.student.encode(self.text)

    @cached_property
    def teacher_ids(self) -> list[int]:
        return self.teacher.encode(self.text)

    @cached_property
    def student_ends(self) -> list[int]:
        """n + 1 offsets, in bytes."""
        return _offsets(self.student_ids, self.student)

    @cached_property
    def teacher_ends(self) -> list[int]:
        """m + 1 offsets, in bytes."""
        return _offsets(self.teacher_ids, self.teacher)

    def window(self, position: int) -> Window:
        """The text before the student's token at ``position``, from a place where both
        tokenizers cut what follows as they do in the whole text."""
        here = self.student_ends[position]
        for start in self._starts(here):
            first = self.student_ends.index(start)
            begin = self.teacher_ends.index(start)
            text = self.data[start : start + 2 * MOST_BYTES].decode("utf-8", "ignore")
            if not start or (
                self._same(self.student, text, self.student_ids[first:], here - start)
                and self._same(self.teacher, text, self.teacher_ids[begin:], here - start)
            ):
                return Window(
                    said=self.data[start:here],
                    student_ids=self.student_ids[first:position],
                    before=(*self.before, *self.teacher_ids[:begin]),
                )
        raise AssertionError("a window may begin with the text")

    def _starts(self, here: int) -> list[int]:
        """Where a window may begin, the best first: behind a line, else between words."""
        shared = set(self.student_ends) & set(self.teacher_ends)
        near = [at for at in shared if here - MOST_BYTES <= at <= here - LEAST_BYTES]
        near = [at for at in near if self.data[at] & 0xC0 != 0x80]
        lines = [at for at in near if self.data[at - 1] == 10 and not _is_space(self.data, at)]
        words = [at for at in near if self.data[at] == 32 and not _is_space(self.data, at + 1)]
        rest = set(near) - set(lines) - set(words)
        short = [at for at in (*lines, *words) if at >= here - SHORT_BYTES]
        ordered = [sorted(some, reverse=True) for some in (short, lines, words, rest)]
        return [at for some in ordered for at in some] + [0]

    @staticmethod
    def _same(tokenizer: RawTokenizer, text: str, ids: list[int], said: int) -> bool:
        """Whether the tokenizer cuts the first bytes of ``text`` as ``ids``."""
        size = 0
        for mine, theirs in zip(tokenizer.encode(text), ids, strict=False):
            if mine != theirs:
                return False
            size += len(tokenizer.token_bytes[mine])
            if size >= said:
                return True
        return size >= said


def _offsets(ids: list[int], tokenizer: RawTokenizer) -> list[int]:
    return [0, *accumulate(len(tokenizer.token_bytes[token]) for token in ids)]


def _is_space(data: bytes, at: int) -> bool:
    return data[at : at + 1].isspace()
