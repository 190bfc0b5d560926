"""How the renderings of the two sides differ, in sentences for whoever starts a run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from itertools import count

import numpy as np
from teacher_proto.types import ChatPrompt, Int32, TokenPrompt

from student_trainer.rollout.base import PromptItem
from student_trainer.teacher.prompts import AtTeacher

SAMPLE = 64  # conversations that are compared where the teacher reads the student's tokens
BEFORE, AFTER = 4, 12  # tokens that are shown around the first difference

Decode = Callable[[Sequence[int]], str]


class Renderings:
    """Counts how a teacher reads prompts, without keeping them.

    Args:
        decode: ids of the student to text.
        begin: what the teacher's tokenizer puts before a text.
    """

    def __init__(self, decode: Decode, begin: str = "") -> None:
        self._decode = decode
        self._begin = begin
        self._bare = 0
        self._conversations = 0
        self._other = 0
        self._first = ""
        self._left_out: Counter[str] = Counter()
        self._added: Counter[str] = Counter()

    def add(self, found: AtTeacher) -> None:
        item = found.item
        if found.refusal is not None or not isinstance(item.source, ChatPrompt):
            return
        self._conversations += 1
        self._bare += found.bare
        self._left_out.update([found.left_out] if found.left_out else [])
        self._added.update([found.added] if found.added else [])
        read = item.at_teacher
        if isinstance(read, TokenPrompt) and not np.array_equal(read.token_ids, item.token_ids):
            self._other += 1
            self._first = self._first or self._difference(item.token_ids, read.token_ids)

    @property
    def changed(self) -> int:
        """How many conversations the teacher reads otherwise than it did before it could be
        asked: not as the student's tokens, or, with another tokenizer, with other thinking."""
        return max(self._other, self._left_out.total(), self._added.total())

    def notes(self, *, own: bool) -> list[str]:
        """One sentence on each way in which the two sides' renderings differ.

        Args:
            own: whether the teacher reads its own renderings.
        """
        notes = []
        if self._other and own:
            notes.append(
                f"the teacher reads {self._other} of {self._conversations} conversations as its "
                'own chat template renders them (teacher.prompt = "own"), which is not what the '
                f"student reads: {self._first}"
            )
        elif self._other:
            notes.append(
                'the teacher judges under the student\'s prompts (teacher.prompt = "student"), and '
                f"its own chat template renders {self._other} of {self._conversations} "
                f"conversations otherwise: {self._first}"
            )
        for tail, many in self._left_out.items() if own else ():
            notes.append(
                f"the teacher's chat template begins the answer with {tail!r} and the student's "
                f"does not ({many} of {self._conversations} conversations): it is left out of what "
                "the teacher reads, so that both begin in the same place"
            )
        for tail, many in self._added.items() if own else ():
            notes.append(
                f"the student's chat template begins the answer with {tail!r} and the teacher's "
                f"does not ({many} of {self._conversations} conversations): the teacher reads it "
                "too, so that both begin in the same place"
            )
        if self._bare:
            notes.append(
                f"the teacher's chat template writes no {self._begin!r}, which its tokenizer "
                f"itself puts before a text, for {self._bare} of {self._conversations} "
                'conversations; data.add_bos = "always" adds it, where the student has one too'
            )
        return notes

    def _difference(self, student: Int32, teacher: Int32) -> str:
        """Where two renderings first differ, with what stands there."""
        both = list(zip(student.tolist(), teacher.tolist(), strict=False))
        place = next((i for i, (a, b) in zip(count(), both, strict=False) if a != b), len(both))
        shown = slice(max(place - BEFORE, 0), place + AFTER)
        own, theirs = (self._decode(ids[shown].tolist()) for ids in (student, teacher))
        return (
            f"the first differs at token {place}, {own!r} for the student and {theirs!r} for the "
            "teacher"
        )


def spread(prompts: Sequence[PromptItem], most: int = SAMPLE) -> list[PromptItem]:
    """At most so many of the conversations among the prompts, evenly over all of them."""
    found = [item for item in prompts if isinstance(item.source, ChatPrompt)]
    taken = min(len(found), most)
    return [found[(2 * i + 1) * len(found) // (2 * taken)] for i in range(taken)]
