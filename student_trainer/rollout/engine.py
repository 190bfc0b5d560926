"""What writes the student's responses: one protocol, and a row for each engine in ENGINES."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Protocol

from student_trainer.rollout.base import PromptItem, Rollout
from student_trainer.settings.rollout import RolloutSettings
from student_trainer.student.model import Student


@dataclass(frozen=True)
class ResponseKey:
    """A response that is to be written.

    Attributes:
        prompt: what it answers.
        index: which of the prompt's responses it is.
        limit: tokens that it has at most; None for ``rollout.max_new_tokens``, which is no less.
    """

    prompt: PromptItem
    index: int
    limit: int | None = None


# Called with the rollouts that ended together, as (place in the result, rollout), in ascending
# order of places.
Ended = Callable[[list[tuple[int, Rollout]]], None]


class RolloutEngine(Protocol):
    """Writes the student's responses, with the weights that it was last handed.

    Attributes:
        name: its row in ``ENGINES``.
        replays: whether the same weights, prompts, seed and step give the same bytes again, so
            that a batch which was lost can be written anew.
    """

    @property
    def name(self) -> str: ...

    @property
    def replays(self) -> bool: ...

    def update_weights(self, version: int) -> None:
        """Takes over the student's weights as they are now. Does nothing where it has this
        version already.

        Args:
            version: completed updates of the student.

        Raises:
            LsmError: they could not be taken over. Until a later call succeeds the engine
                refuses to write.
        """

    def generate(
        self,
        prompts: Sequence[PromptItem],
        *,
        seed: int,
        step: int,
        ended: Ended | None = None,
        mine: Sequence[int] | None = None,
    ) -> list[Rollout]:
        """Writes ``rollout.group_size`` responses to each prompt, prompt-major, as
        ``response_keys`` numbers them. Each carries the version of the weights that wrote it.

        Args:
            seed, step: what the random streams are of, besides prompt and response.
            mine: as for ``response_keys``.
            ended: called in this thread while other responses are still being written.

        Raises:
            LsmError: the student's logits are not finite, or the engine cannot write.
        """
        ...

    def write(
        self, keys: Sequence[ResponseKey], *, seed: int, step: int, ended: Ended | None = None
    ) -> list[Rollout]:
        """Writes these responses. A response depends on its key, the seed and the step, and not
        on the others.

        Raises:
            LsmError: as ``generate``.
        """
        ...

    def close(self) -> None:
        """Ends what the engine has started; it is not used any more."""


# By the value of ``rollout.engine``: module and name of the class, which is made of the student,
# the settings and the tokens of the longest prompt with its response. A module is imported when
# its engine is chosen.
ENGINES: Mapping[str, str] = {
    "transformers": "student_trainer.rollout.engines.transformers:TransformersEngine",
    "vllm": "student_trainer.rollout.vllm.engine:VllmEngine",
}


def make_engine(
    student: Student, settings: RolloutSettings, longest: int | None = None
) -> RolloutEngine:
    """The engine that ``rollout.engine`` names.

    Args:
        longest: tokens of the longest prompt with its response; None for the longest sequence
            that the student takes.

    Raises:
        LsmError: it cannot be made.
    """
    module, _, name = ENGINES[settings.engine].partition(":")
    made: RolloutEngine = getattr(import_module(module), name)(
        student, settings, student.max_length if longest is None else longest
    )
    return made


def response_keys(
    prompts: Sequence[PromptItem], group_size: int, mine: Sequence[int] | None = None
) -> list[ResponseKey]:
    """The responses to ``prompts``, prompt-major. When a prompt occurs again the indices of its
    responses continue, so that no random stream is used twice.

    Args:
        mine: the places of those prompts, ascending, whose responses are wanted; other ranks
            write those of the others. None for all.
    """
    seen: Counter[str] = Counter()
    wanted = range(len(prompts)) if mine is None else frozenset(mine)
    keys: list[ResponseKey] = []
    for place, prompt in enumerate(prompts):
        first = seen[prompt.prompt_id]
        seen[prompt.prompt_id] += group_size
        if place in wanted:
            keys += [ResponseKey(prompt, first + offset) for offset in range(group_size)]
    return keys
