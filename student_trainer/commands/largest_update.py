"""What an update computes when every prompt and every response is as long as it may be."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from teacher_proto.types import Int32

from student_trainer.settings.train import TrainConfig
from student_trainer.student.model import Student
from student_trainer.student.packing.layout import Layout, pack, pad


@dataclass(frozen=True)
class Sequences:
    """Responses to one prompt as the student reads them at once.

    Attributes:
        prompt, response: tokens of the prompt and of each response.
        responses: how many there are; padded ones are read one by one.
        packed: whether they read their prompt once.
    """

    prompt: int
    response: int
    responses: int
    packed: bool

    @property
    def longest(self) -> int:
        """Tokens of the prompt with one response."""
        return self.prompt + self.response

    @property
    def tokens(self) -> int:
        """Tokens that are computed."""
        return self.prompt + self.responses * self.response

    def shortened(self, longest: int) -> Sequences:
        """The same with ``longest`` >= 2 tokens of the prompt and a response, divided as here."""
        prompt = min(max(round(longest * self.prompt / self.longest), 1), longest - 1)
        return replace(self, prompt=prompt, response=longest - prompt)

    def doubled(self) -> Sequences:
        return replace(self, prompt=2 * self.prompt, response=2 * self.response)

    def layout(self, student: Student) -> Layout:
        """How a student reads them; the ids are spread over those that it can write."""
        own = [self._ids(student, 1 + nth) for nth in range(self.responses)]
        sequences = [np.concatenate([self._ids(student, 0)[: self.prompt], r]) for r in own]
        if self.packed:
            return pack(sequences, [self.prompt] * self.responses)
        return pad(sequences, student.padding_id)

    def _ids(self, student: Student, first: int) -> Int32:
        count = self.response if first else self.prompt
        step = max(student.drawn_below // count, 1)
        return ((first + np.arange(count) * step) % student.drawn_below).astype(np.int32)


@dataclass(frozen=True)
class LargestUpdate:
    """The micro-batches of an update at its largest.

    Attributes:
        sequences: those that are read together.
        in_micro_batch: how many such the largest micro-batch has; a part of one counts, too.
        tokens: that the updates of a step compute.
    """

    sequences: Sequences
    in_micro_batch: float
    tokens: int

    def __str__(self) -> str:
        read = self.sequences
        tokens = int(self.in_micro_batch * read.tokens)
        if not read.packed:
            return f"{tokens} tokens with padding"
        shared = f", a prompt once for {read.responses} responses" if read.responses > 1 else ""
        return f"{tokens} tokens without padding{shared}"


def largest_update(
    config: TrainConfig, student: Student, prompt: int | None = None
) -> LargestUpdate:
    """The largest update of the settings: a step's responses, at their longest.

    Args:
        prompt: tokens of every prompt; None for the most that the settings allow.
    """
    prompt = config.data.max_prompt_tokens if prompt is None else prompt
    response = config.scoring.scored(config.rollout.max_new_tokens)
    budget, group = config.optimizer.micro_batch_tokens, config.rollout.group_size
    step = config.rollout.prompts_per_step * group
    update = step // config.optimizer.updates_per_batch
    together = min(group, update, (budget - prompt) // response) if student.packs else 1
    read = Sequences(prompt, response, together, student.packs)
    pieces = step / group * -(-group // together)
    return LargestUpdate(
        read,
        min(budget / read.tokens, update / together),
        int(pieces * prompt) + step * response,
    )
