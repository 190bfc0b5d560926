"""A case in tokens: the prompt, the answer's beginning, and the loop over and over."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from teacher_proto.errors import ConfigurationError
from teacher_proto.types import ChatMessage, ChatPrompt, TextPrompt

from student_trainer.data.encoding import Encoder
from student_trainer.data.rendering import REFERENCE, PromptReader, RowRefusedError
from student_trainer.evaluation.rows import Selection
from student_trainer.rollout.base import PromptItem
from student_trainer.settings.data import DataSettings
from student_trainer.study.repetition.cases import Case


@dataclass(frozen=True)
class Loop:
    """Attributes:
    case: its texts.
    selection: the prompt, the response (answer and repetitions), and the rows of the
        repetitions' tokens, [repetitions * n].
    length: n, the tokens of the loop.
    """

    case: Case
    selection: Selection
    length: int

    @property
    def repetitions(self) -> int:
        """How often the loop stands there. The first time nothing is repeated yet."""
        return len(self.selection.rows) // self.length


def make_loop(case: Case, tokenizer: Any, repetitions: int) -> Loop:
    """The case with its loop ``repetitions + 1`` times: r = 0 is the first time.

    The prompt is the question as the chat template renders it, or its text without one.

    Raises:
        ConfigurationError: the template fails, or the loop's text is not the same tokens every
            time.
    """
    prompt = read_prompt(case.question, tokenizer)
    answer, whole = Encoder(tokenizer).encode(
        [case.answer, case.answer + case.loop * (repetitions + 1)]
    )
    length, rest = divmod(len(whole) - len(answer), repetitions + 1)
    unit = whole[len(answer) : len(answer) + length]
    if rest or not unit or whole != answer + unit * (repetitions + 1):
        raise ConfigurationError(
            f"the text {case.loop!r} after {case.answer[-20:]!r} is not the same tokens each time",
            where=f"case {case.name!r}",
            fix="begin the loop's text with a space, and end it with a word or a stop",
        )
    response = np.asarray(whole, np.int32)
    rows = np.arange(len(answer), len(whole), dtype=np.int32)
    return Loop(case, Selection(prompt, response, rows), length)


def read_prompt(question: str, tokenizer: Any) -> PromptItem:
    """A question as a model with this tokenizer reads it."""
    source: ChatPrompt | TextPrompt = TextPrompt(question + "\n")
    if tokenizer.chat_template:
        source = ChatPrompt((ChatMessage("user", question),))
    reader = PromptReader(tokenizer, DataSettings(train="none.jsonl"), REFERENCE)
    (read,) = reader.read([reader.draft(source, "question")])
    if isinstance(read, RowRefusedError):
        raise read
    digest = hashlib.sha256(read.token_ids.tobytes()).hexdigest()
    return PromptItem(prompt_id=digest[:16], token_ids=read.token_ids, source=read.source)


def check_length(loops: Sequence[Loop], longest: int, where: str) -> None:
    """Raises ConfigurationError where a model cannot read all of a loop."""
    for loop in loops:
        tokens = len(loop.selection.prompt.token_ids) + len(loop.selection.response)
        if tokens > longest:
            raise ConfigurationError(
                f"case {loop.case.name!r} has {tokens} tokens, and the model reads {longest}",
                where=where,
                fix="give fewer --repetitions",
            )
