"""Prompts and rollouts. Shapes: P prompt tokens, n response tokens."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from teacher_proto.types import Bool, Float32, Int32, Prompt, SpecialTokens

from student_trainer.rollout.episode import Episode
from student_trainer.settings.teacher import ONLY_TEACHER

Origin = Literal["student", "data"]
ORIGINS: tuple[Origin, ...] = ("student", "data")


@dataclass(frozen=True)
class PromptItem:
    """A prompt of the dataset.

    Attributes:
        prompt_id: a digest of ``token_ids``, the same for equal prompts wherever they
            come from, and on whatever day they are rendered; of a task that acts, of its ``row``
            too. It seeds the prompt's random streams.
        token_ids: int32 [P], in the student's vocabulary, as the student reads it.
        source: the prompt as it is in the dataset, for a teacher that renders prompts
            itself.
        file: which of the files of ``data.train``, or of the tasks, it is from.
        place: where the dataset has it, for messages.
        thinking: what the student's generation prompt opens, or opens and closes, of
            thinking: ``<think>\\n``; empty when it does neither.
        at_teacher: what a teacher reads that renders prompts itself, once it was asked
            (teacher/prompts.py); None where that is ``source``.
        special_tokens: those that a teacher with another tokenizer is to read a text with.
        begin_ids: ids of the student that begin every prompt, whatever a chat template
            writes, on both sides; empty where the template decides.
        teacher: name of the teacher that scores the responses to it.
        for_teacher: what the teacher reads in its place (``data.columns.teacher_prompt``), as
            the student would read it, with no tokens where the student's chat template refuses
            it; None where both read this prompt.
        response: the answer that the data has for it (``data.columns.response``), or None.
        response_ids: int32 [n], that answer in the student's tokens, with what ends it; None
            until it is read (startup/answers.py).
        task: name of the task that it is of; empty where the run has none.
        row: of a task, what its verifier reads of the prompt.
    """

    prompt_id: str
    token_ids: Int32
    source: Prompt
    file: int = 0
    place: str = field(default="", compare=False)
    thinking: str = ""
    special_tokens: SpecialTokens = SpecialTokens.AS_WRITTEN
    at_teacher: Prompt | None = None
    begin_ids: tuple[int, ...] = ()
    teacher: str = ONLY_TEACHER
    for_teacher: PromptItem | None = None
    response: str | None = None
    response_ids: Int32 | None = None
    task: str = ""
    row: Mapping[str, Any] | None = field(default=None, compare=False, repr=False)

    @property
    def read_by_teacher(self) -> PromptItem:
        """The prompt that the teacher reads: ``for_teacher``, or else this one."""
        return self.for_teacher or self

    def as_read(self, item: PromptItem) -> PromptItem:
        """This prompt with ``item`` as ``read_by_teacher``."""
        return item if self.for_teacher is None else replace(self, for_teacher=item)


@dataclass(frozen=True)
class Rollout:
    """One response of the student, or an answer of the data.

    Attributes:
        prompt: the prompt that it answers.
        index: which of the prompt's G responses it is; 0 of an answer of the data.
        token_ids: int32 [n], n >= 1, with the terminator when it was drawn, and up to the
            token that completed a stop string.
        log_probs: float32 [n], the student's log-probability of each token at the
            rollout's temperature, over the ids that a token has, before top-p. NaN of an answer
            of the data, which no student drew.
        finished: False when the length limit cut the response.
        support_ids: int32 [n, K], the most likely ids of the student that drew the
            response, at every token; None when the loss does not need them.
        nucleus_mass: float32 [n] in (0, 1], the probability, at the rollout's temperature, of
            the nucleus that each token was drawn from (``rollout.top_p``); None where it is
            not known, as in a checkpoint of before it was kept.
        written: tokens of the whole response, where these are the first of them that are scored
            (``scoring``); None where these are all.
        origin: whether the student wrote it, or it is an answer of the data.
        weights_version: completed updates of the student that wrote it; None where that is not
            known or nobody's: of an answer of the data, of a response that was written outside
            of a step, and of a checkpoint of before it was kept.
        advantage: what its tokens' policy gradient is weighed with in the step that updates on
            it: the weight of rewards times the advantage of its score; 0 where nothing is learnt
            from a score (docs/rewards.md).
        own: bool [n], of an episode the tokens that the student wrote. The others are
            observations and what the chat template puts around turns: they are neither scored
            nor learnt from, ``log_probs`` and ``nucleus_mass`` are NaN there and ``support_ids``
            -1. None where the student wrote all.
        episode: how it went, of a response that is written turn by turn.
    """

    prompt: PromptItem
    index: int
    token_ids: Int32
    log_probs: Float32
    finished: bool
    support_ids: Int32 | None = None
    nucleus_mass: Float32 | None = None
    written: int | None = None
    origin: Origin = "student"
    weights_version: int | None = None
    advantage: float = 0.0
    own: Bool | None = None
    episode: Episode | None = None

    @property
    def own_rows(self) -> Bool:
        """bool [n]: the tokens that are learnt from: those that the student wrote, or all of an
        answer of the data."""
        return np.ones(len(self.token_ids), np.bool_) if self.own is None else self.own

    @property
    def own_length(self) -> int:
        """Tokens that are learnt from, of those that are here."""
        return len(self.token_ids) if self.own is None else int(self.own.sum())

    @property
    def length(self) -> int:
        """Tokens of the whole response."""
        return len(self.token_ids) if self.written is None else self.written

    def first(self, count: int) -> Rollout:
        """The part of the response that is scored: its first ``count`` tokens, at least 1; the
        response itself where it has no more."""
        if count >= len(self.token_ids):
            return self
        return replace(
            self,
            token_ids=self.token_ids[:count],
            log_probs=self.log_probs[:count],
            support_ids=None if self.support_ids is None else self.support_ids[:count],
            nucleus_mass=None if self.nucleus_mass is None else self.nucleus_mass[:count],
            own=None if self.own is None else self.own[:count],
            written=self.length,
        )

    @classmethod
    def of_data(cls, prompt: PromptItem) -> Rollout:
        """The answer that the data has for a prompt, whose ``response_ids`` are known."""
        assert prompt.response_ids is not None, "answers are read before the first step"
        unknown = np.full(len(prompt.response_ids), np.nan, np.float32)
        return cls(prompt, 0, prompt.response_ids, unknown, finished=True, origin="data")

    def ended_by_token(self, terminators: Collection[int]) -> bool:
        """Whether its last token is one of ``terminators``; False for a response that the
        length limit cut, for one that a stop string ended, whose text could go on, and for a part
        of one, whose text does go on."""
        whole = self.length == len(self.token_ids)
        return whole and self.finished and int(self.token_ids[-1]) in terminators

    def open_ends(self, terminators: Collection[int]) -> NDArray[np.int64]:
        """int64 [m]: the last tokens of the stretches that the student wrote, a turn of an episode
        or the whole response, which none of ``terminators`` has ended: their text could go on."""
        own = self.own_rows
        last = own & ~np.append(own[1:], False)
        ended = np.isin(self.token_ids, list(terminators))
        ended[-1] = self.ended_by_token(terminators)
        return np.flatnonzero(last & ~ended)
