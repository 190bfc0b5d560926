"""Rollouts of the model that is trained. Its own generation settings (temperature, top-k,
penalties) do not apply: every token is drawn from the rollout's own random stream."""

from __future__ import annotations

from collections.abc import Sequence

from student_trainer.rollout.base import PromptItem, Rollout
from student_trainer.rollout.continuous import write_continuously
from student_trainer.rollout.drawing import Drawing
from student_trainer.rollout.engine import Ended, ResponseKey, response_keys
from student_trainer.rollout.padded import write_padded
from student_trainer.rollout.slots.supported import why_padded
from student_trainer.settings.rollout import RolloutSettings
from student_trainer.student.model import Student


def generate(
    student: Student,
    prompts: Sequence[PromptItem],
    settings: RolloutSettings,
    *,
    seed: int,
    step: int,
    ended: Ended | None = None,
    mine: Sequence[int] | None = None,
    weights_version: int | None = None,
) -> list[Rollout]:
    """Writes ``settings.group_size`` responses to each prompt, prompt-major.

    At most ``settings.batch_size`` are written together. Where one ends the next begins, unless
    the student needs padded batches (``why_padded``). Ids that no token has are never drawn.
    ``ended`` is called while other responses are still being written, in an order that depends on
    the responses alone.

    Args:
        mine: as for ``response_keys``.
        weights_version: what the rollouts carry; None where they are of no step.

    Raises:
        LsmError: the student's logits are not finite.
    """
    keys = response_keys(prompts, settings.group_size, mine)
    return write(
        student, keys, settings, seed=seed, step=step, ended=ended, weights_version=weights_version
    )


def write(
    student: Student,
    keys: Sequence[ResponseKey],
    settings: RolloutSettings,
    *,
    seed: int,
    step: int,
    ended: Ended | None = None,
    weights_version: int | None = None,
) -> list[Rollout]:
    """Writes these responses, as ``generate`` does.

    Raises:
        LsmError: the student's logits are not finite.
    """
    if not keys:
        return []
    lines = min(settings.batch_size, len(keys))
    drawing = Drawing(student, settings, seed, step, lines, weights_version)
    rollouts: dict[int, Rollout] = {}

    def take(found: list[tuple[int, Rollout]]) -> None:
        rollouts.update(found)
        if ended is not None:
            ended(found)

    student.module.eval()
    put = write_padded if why_padded(student) else write_continuously
    put(student, keys, drawing, take)
    return [rollouts[place] for place in range(len(keys))]
