"""What a teacher reads of a prompt that renders prompts itself.

It does with another tokenizer, and where ``teacher.prompt`` is "own". A generation prompt can
open thinking for the assistant. Where only one side's does, every token of a response would
be judged after a beginning that means something else, so the teacher's is made to mean what
the student's does:

    student   teacher   the teacher reads
    open      none      its prompt, and what the student's opens
    open      closed    its prompt without the closed thinking, and what the student's opens
    none      open      its prompt without what it opens
    closed    open      its prompt without what it opens, and the student's closed thinking
    closed    none      its prompt, and the student's closed thinking if it has tokens for it
    none      closed    its prompt: both begin with the answer
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from teacher_proto.models.begin_tokens import begin_text
from teacher_proto.templates.thinking import THINKING
from teacher_proto.types import (
    ChatPrompt,
    Prompt,
    Refusal,
    RenderedPrompt,
    SpecialTokens,
    TextPrompt,
    TokenPrompt,
)

from student_trainer.data.templates import marks_end, opened_thinking, thinking
from student_trainer.rollout.base import PromptItem

BATCH = 256  # prompts whose renderings are in memory at a time

Render = Callable[[Sequence[Prompt]], Sequence[RenderedPrompt]]


@dataclass(frozen=True)
class AtTeacher:
    """A prompt at the teacher.

    Attributes:
        item: the prompt, with what the teacher reads of it.
        tokens: how many the teacher reads; None for a prompt that is refused before that is
            known.
        refusal: why the teacher cannot read it; None where it can.
        left_out: thinking that the teacher's generation prompt has, and its prompt has not.
        added: thinking of the student's that its prompt has, and its generation prompt has not.
        begun: whether the tokens that its tokenizer puts before a text were added to what its
            chat template writes.
        bare: whether it reads a conversation without them.
    """

    item: PromptItem
    tokens: int | None
    refusal: Refusal | None = None
    left_out: str = ""
    added: str = ""
    begun: bool = False
    bare: bool = False

    @property
    def rewritten(self) -> bool:
        """Whether the teacher reads anything but what its template prints."""
        return bool(self.left_out or self.added or self.begun)


class PromptsAtTeacher:
    """Asks a teacher how it reads prompts.

    Args:
        render: prompts to what the teacher reads, with its text.
        encode: a text to ids of the student, none of them added.
        begin: of a teacher that has another tokenizer, the text of the tokens that this puts
            before a text; None for one that has the student's.
    """

    def __init__(
        self, render: Render, encode: Callable[[str], Sequence[int]], begin: str | None
    ) -> None:
        self._render = render
        self._encode = encode
        self._realigned = begin is not None
        self._begin = begin or ""
        self._marks: dict[str, str] | None = None

    def read(self, prompts: Sequence[PromptItem]) -> Iterator[AtTeacher]:
        """One result for each prompt, in order. Of texts a teacher with the student's tokenizer
        reads the student's tokens.

        Raises:
            LsmError: as ``TeacherClient.render``.
        """
        for start in range(0, len(prompts), BATCH):
            some = prompts[start : start + BATCH]
            asked = [item for item in some if self._realigned or not is_text(item)]
            found = iter(self._asked(asked) if asked else [])
            for item in some:
                known = not self._realigned and is_text(item)
                yield AtTeacher(item, len(item.token_ids)) if known else next(found)

    def _asked(self, some: Sequence[PromptItem]) -> list[AtTeacher]:
        asked = [own_source(item) for item in some]
        rendered = self._render(asked)
        tails = self._thinking(asked, rendered)
        found = [
            self._at_teacher(item, one, tail)
            for item, one, tail in zip(some, rendered, tails, strict=True)
        ]
        return self._counted(found)

    def _thinking(self, prompts: Sequence[Prompt], rendered: Sequence[RenderedPrompt]) -> list[str]:
        """What the teacher's generation prompt opens, or opens and closes, of thinking, for
        each prompt."""
        tails = [""] * len(prompts)
        near = [
            (place, prompt, one.text)
            for place, (prompt, one) in enumerate(zip(prompts, rendered, strict=True))
            if isinstance(prompt, ChatPrompt) and one.text is not None and marks_end(one.text)
        ]
        bare = [replace(prompt, add_generation_prompt=False) for _, prompt, _ in near]
        without = self._render(bare) if near else []
        for (place, prompt, text), one in zip(near, without, strict=True):
            tails[place] = opened_thinking(text, one.text, prompt.messages[-1].content)
        return tails

    def _at_teacher(self, item: PromptItem, rendered: RenderedPrompt, tail: str) -> AtTeacher:
        text = rendered.text
        if rendered.refusal is not None or text is None or not isinstance(item.source, ChatPrompt):
            return AtTeacher(item, rendered.token_count, rendered.refusal)
        own = self._in_its_marks(item.thinking)
        leave_out, add = carried(item.thinking, tail, has_tokens=bool(own))
        added = (own or item.thinking) if add else ""
        left_out = tail if leave_out else ""
        read = text.removesuffix(left_out) + added
        if not self._realigned:
            ids = self._encode(read)
            begun = begin_text(item.begin_ids, np.asarray(ids, np.int32))
            item = replace(item, at_teacher=TokenPrompt(begun))
            return AtTeacher(item, len(begun), left_out=left_out, added=added)
        always, bare = bool(item.begin_ids), not read.startswith(self._begin)
        found = AtTeacher(
            item,
            rendered.token_count,
            left_out=left_out,
            added=added,
            begun=bare and always,
            bare=bare and not always,
        )
        if not found.rewritten:
            return found
        special = SpecialTokens.ADD if always else SpecialTokens.AS_WRITTEN
        return replace(found, item=replace(item, at_teacher=TextPrompt(read, special)))

    def _counted(self, found: Sequence[AtTeacher]) -> list[AtTeacher]:
        """With the tokens of what the teacher reads in place of what its template printed."""
        changed = [place for place, one in enumerate(found) if one.rewritten]
        if not (changed and self._realigned):
            return list(found)
        counted = list(found)
        texts = [prompt for place in changed if (prompt := found[place].item.at_teacher)]
        for place, one in zip(changed, self._render(texts), strict=True):
            counted[place] = replace(found[place], tokens=one.token_count, refusal=one.refusal)
        return counted

    def _in_its_marks(self, tail: str) -> str:
        """The student's thinking in the teacher's tokens for it; empty where it has none."""
        if not tail:
            return ""
        if self._marks is None:
            openers = [TextPrompt(opener) for opener, _ in THINKING]
            known = [one.token_count == 1 for one in self._render(openers)]
            pairs = [pair for pair, there in zip(THINKING, known, strict=True) if there]
            self._marks = {
                mark: own[0] if mark == pair[0] else own[1]
                for pair in THINKING
                for own in ([pair] if pair in pairs else pairs)[:1]
                for mark in pair
            }
        for mark, own in self._marks.items():
            if mark in tail:
                tail = tail.replace(mark, own)
        return tail if self._marks else ""


def carried(student: str, teacher: str, *, has_tokens: bool) -> tuple[bool, bool]:
    """(whether the teacher's thinking is left out, whether the student's is added).

    Args:
        student, teacher: what each generation prompt opens, or opens and closes.
        has_tokens: whether the teacher has tokens of its own for the marks of thinking.
    """
    own, theirs = thinking(student), thinking(teacher)
    if own == theirs:
        return False, False
    leave_out = theirs == "open" or (own, theirs) == ("open", "closed")
    return leave_out, own == "open" or (own == "closed" and (leave_out or has_tokens))


def is_text(item: PromptItem) -> bool:
    return isinstance(item.source, TextPrompt)


def own_source(item: PromptItem) -> Prompt:
    """What a teacher is asked to read that renders prompts itself: the conversation, or the
    text with the tokens that begin a text."""
    if isinstance(item.source, TextPrompt):
        return replace(item.source, special_tokens=item.special_tokens)
    return item.source
