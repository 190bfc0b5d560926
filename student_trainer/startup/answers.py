"""Answers of the data as the student would have written them: the tokens that go on from its
prompt, up to the one that ends a response."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import numpy as np
from teacher_proto.types import ChatMessage, ChatPrompt, Int32, TextPrompt

from student_trainer.data.columns import refuse_answers
from student_trainer.data.encoding import Encoder
from student_trainer.data.progress import told
from student_trainer.data.rendering import PromptReader
from student_trainer.rollout.base import PromptItem

ENCODED_AT_ONCE = 1024


@dataclass(frozen=True)
class AnswerRules:
    """What an answer has to be.

    Attributes:
        terminators: ids that end a response.
        end: the one of them that is put after an answer which the chat template leaves open.
        most: tokens of the longest answer, with its end.
        drawn: whether the student can draw an id.
        completed: how many first tokens of a response (int32 [n]) complete a text that ends it
            (``rollout.stop_strings``); 0 where none do.
    """

    terminators: Collection[int]
    end: int
    most: int
    drawn: Callable[[int], bool]
    completed: Callable[[Int32], int]


def read_answers(
    prompts: Sequence[PromptItem], reader: PromptReader, tokenizer: Any, rules: AnswerRules
) -> tuple[list[PromptItem], int]:
    """The prompts with the tokens of their answers, and after how many of them the answer is not
    what the chat template goes on with.

    Raises:
        ConfigurationError: some answers cannot be used; the rows of the first few are named.
    """
    found: list[PromptItem] = []
    wrong: list[tuple[str, str]] = []
    as_they_are = 0
    tokens = _Tokens(tokenizer, rules)
    items = told(prompts, "answers are read", total=len(prompts))
    while some := list(islice(items, ENCODED_AT_ONCE)):
        texts = [_answer_text(reader, prompt) for prompt in some]
        tokens.encode(
            part for text in texts for part in (text.answer, text.before, text.before + text.after)
        )
        for prompt, text in zip(some, texts, strict=True):
            as_they_are += isinstance(prompt.source, ChatPrompt) and not text.rendered
            try:
                found.append(replace(prompt, response_ids=tokens.of(text)))
            except _WrongAnswerError as error:
                wrong.append((prompt.place or prompt.prompt_id, str(error)))
    refuse_answers(wrong, len(prompts))
    return found, as_they_are


class _WrongAnswerError(Exception):
    """What is wrong with an answer."""


@dataclass(frozen=True)
class _AnswerText:
    """An answer as text.

    Attributes:
        answer: as the data has it.
        before: the prompt.
        after: what goes on from the prompt.
        rendered: whether the chat template wrote that.
    """

    answer: str
    before: str
    after: str
    rendered: bool


def _answer_text(reader: PromptReader, prompt: PromptItem) -> _AnswerText:
    answer, source = prompt.response, prompt.source
    assert answer is not None, "rows without an answer are refused when they are read"
    if isinstance(source, TextPrompt):
        return _AnswerText(answer, source.text, answer, False)
    assert isinstance(source, ChatPrompt)
    before = reader.render(source, prompt.place)
    turns = (*source.messages, ChatMessage("assistant", answer))
    spoken = replace(source, messages=turns, add_generation_prompt=False)
    whole = reader.render(spoken, prompt.place)
    if whole.startswith(before) and answer.strip() in whole.removeprefix(before):
        return _AnswerText(answer, before, whole.removeprefix(before), True)
    return _AnswerText(answer, before, answer, False)


class _Tokens:
    """The tokens of answers."""

    def __init__(self, tokenizer: Any, rules: AnswerRules) -> None:
        self._tokenizer = tokenizer
        self._encoder = Encoder(tokenizer)
        self._rules = rules
        self._known: dict[str, list[int]] = {}

    def encode(self, texts: Iterable[str]) -> None:
        """Encodes these texts together, in place of those before."""
        each = list(dict.fromkeys(texts))
        self._known = dict(zip(each, self._encoder.encode(each), strict=True))

    def of(self, text: _AnswerText) -> Int32:
        """int32 [n]. Raises _WrongAnswerError."""
        rules, answer, after = self._rules, text.answer, text.after
        if ends := [token for token in self._ids(answer) if token in rules.terminators]:
            name = self._tokenizer.convert_ids_to_tokens(ends[0])
            raise _WrongAnswerError(f"it holds {name}, which ends a response")
        ids = self._going_on(text.before, after)
        there = [place for place, token in enumerate(ids) if token in rules.terminators]
        if there:
            ids, end = ids[: there[0]], ids[there[0]]
        else:
            end = rules.end
            if text.rendered:  # what the template writes after it is no part of the answer
                said = answer if answer in after else answer.strip()
                ids = self._going_on(text.before, after[: after.rindex(said) + len(said)])
        completed = rules.completed(np.asarray(ids, np.int32))
        if 0 < completed < len(ids):
            raise _WrongAnswerError(
                f"its token {completed - 1} completes a text of rollout.stop_strings"
            )
        if not completed:
            ids = [*ids, end]
        if len(ids) > rules.most:
            raise _WrongAnswerError(
                f"it has {len(ids)} tokens with its end, more than rollout.max_new_tokens, "
                f"{rules.most}"
            )
        for token in dict.fromkeys(ids):
            if not rules.drawn(token):
                raise _WrongAnswerError(f"it has the token {token}, which the student cannot write")
        return np.asarray(ids, np.int32)

    def _going_on(self, before: str, after: str) -> list[int]:
        """The ids of ``after`` as they go on from those of ``before``."""
        prompt, whole = self._ids(before), self._ids(before + after)
        if whole[: len(prompt)] == prompt:
            return whole[len(prompt) :]
        # The two texts share a token: the student goes on from the prompt's own tokens.
        alone = self._ids(after)
        if self._tokenizer.decode([*prompt, *alone]) != self._tokenizer.decode(whole):
            raise _WrongAnswerError("its tokens do not go on from the prompt's")
        return alone

    def _ids(self, text: str) -> list[int]:
        known = self._known.get(text)
        return self._encoder.encode([text])[0] if known is None else known
