"""The model that is trained, as the writer of its own responses."""

from __future__ import annotations

from collections.abc import Sequence

from student_trainer.rollout.base import PromptItem, Rollout
from student_trainer.rollout.engine import Ended, ResponseKey, response_keys
from student_trainer.rollout.generate import write
from student_trainer.rollout.slots.supported import why_padded
from student_trainer.settings.rollout import RolloutSettings
from student_trainer.student.model import Student


class TransformersEngine:
    """Writes with the parameters of ``student.module`` themselves, so that there is nothing to
    hand over. A batch that is written anew has the same bytes."""

    name = "transformers"
    replays = True

    def __init__(self, student: Student, settings: RolloutSettings, longest: int = 0) -> None:
        self._student = student
        self._settings = settings
        self._version: int | None = None
        why_padded(student)  # said at the start of a run, not in its first step

    def update_weights(self, version: int) -> None:
        self._version = version

    def generate(
        self,
        prompts: Sequence[PromptItem],
        *,
        seed: int,
        step: int,
        ended: Ended | None = None,
        mine: Sequence[int] | None = None,
    ) -> list[Rollout]:
        keys = response_keys(prompts, self._settings.group_size, mine)
        return self.write(keys, seed=seed, step=step, ended=ended)

    def write(
        self, keys: Sequence[ResponseKey], *, seed: int, step: int, ended: Ended | None = None
    ) -> list[Rollout]:
        assert self._version is not None, "it is told the version of its weights first"
        return write(
            self._student,
            keys,
            self._settings,
            seed=seed,
            step=step,
            ended=ended,
            weights_version=self._version,
        )

    def close(self) -> None:
        """Nothing was started."""
