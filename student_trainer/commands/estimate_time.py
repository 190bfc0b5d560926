"""What a step will take of time: measured on a few short responses, and estimated from them."""

from __future__ import annotations

import time
from dataclasses import dataclass
from itertools import pairwise

import torch
from teacher_proto.errors import LsmError

from student_trainer.commands.largest_update import LargestUpdate, largest_update
from student_trainer.rollout.base import PromptItem, Rollout
from student_trainer.rollout.generate import generate
from student_trainer.settings.train import TrainConfig
from student_trainer.startup.start import Start
from student_trainer.tasks.environment import ActingTask
from student_trainer.update.batching import layout_of, micro_batches
from student_trainer.update.metrics import UpdateTotals
from student_trainer.update.student_support import with_student_support
from student_trainer.update.updater import NothingUsableError, Updater

MEASURED_RESPONSES = 4
MEASURED_TOKENS = 32


@dataclass(frozen=True)
class Measured:
    """A few short responses to one prompt.

    Attributes:
        prompt: its tokens.
        responses: how many there are.
        steps: tokens of the longest response.
        read: tokens of all prompts and responses.
        computed: tokens that the student reads to update on them.
        rollout, teacher, update: seconds of writing, of scoring, and of the gradient.
    """

    prompt: int
    responses: int
    steps: int
    read: int
    computed: int
    rollout: float
    teacher: float
    update: float


def measured(start: Start) -> Measured:
    """Writes a few short responses, has them scored and computes their gradient; changes nothing.

    Raises:
        LsmError: as the parts of a step.
    """
    config, student, teachers = start.config, start.student, start.teachers
    count = min(MEASURED_RESPONSES, config.rollout.batch_size)
    new = min(MEASURED_TOKENS, config.rollout.max_new_tokens)
    sizes = {"group_size": count, "max_new_tokens": new, "batch_size": count}
    prompt: PromptItem = start.prompts.first(config.run.seed)
    settings = config.rollout.model_copy(update=sizes)
    loss = config.loss
    clock = [time.monotonic()]
    rollouts: list[Rollout] = generate(student, [prompt], settings, seed=config.run.seed, step=0)
    rollouts = with_student_support(
        student,
        rollouts,
        loss.student_top_k,
        limit=teachers.of(prompt).id_limit,
        micro_batch_tokens=config.optimizer.micro_batch_tokens,
        chunk_rows=loss.chunk_rows,
    )
    clock.append(time.monotonic())
    scores = teachers.submit_rollouts(rollouts).result()
    clock.append(time.monotonic())
    updater = Updater(student, config, teachers.realigned)
    totals = UpdateTotals.of_teachers(teachers)
    try:
        updater.gradients(rollouts, scores.__getitem__, totals, step=1)
    except NothingUsableError as error:
        start.warn(f"none of the few tokens that were scored gives a loss: {error.what}")
    clock.append(time.monotonic())
    seconds = [later - earlier for earlier, later in pairwise(clock)]
    read = sum(len(prompt.token_ids) + len(r.token_ids) for r in rollouts)
    budget = config.optimizer.micro_batch_tokens
    cut = micro_batches(rollouts, budget, packs=student.packs)
    computed = sum(layout_of(student, members, rollouts).ids.size for members in cut)
    steps = max(len(r.token_ids) for r in rollouts)
    return Measured(len(prompt.token_ids), count, steps, read, computed, *seconds)


def duration(start: Start) -> str:
    """Measures a few short responses, and estimates from them how long a step can be.

    Raises:
        LsmError: a part of a step fails, or the device has too little memory for it.
    """
    try:
        found = measured(start)
    except torch.OutOfMemoryError as error:
        raise LsmError(
            f"the device has too little memory for {MEASURED_RESPONSES} short responses: {error}",
            where="student.device",
            fix="use a smaller student, student.lora, or a device with more memory",
        ) from error
    largest = largest_update(start.config, start.student, found.prompt)
    rollout, teacher, update = longest_step(start.config, found, largest)
    step = rollout + update
    padding = "without" if largest.sequences.packed else "with"
    return (
        f"measured: {found.responses} responses of {found.steps} tokens were written in "
        f"{found.rollout:.2f} s, scored in {found.teacher:.2f} s, and their gradient took "
        f"{found.update:.2f} s of {found.computed} tokens {padding} padding. Estimated, were every "
        f"response as long as it may be: a step writes for {_time(rollout)} and updates for "
        f"{_time(update)} on {largest.tokens} tokens, beside {_time(teacher)} of "
        f"scoring; {start.config.run.steps} steps {_time(step * start.config.run.steps)}. Shorter "
        "responses take less, and larger batches than were measured less for each"
        f"{of_episodes(start.config)}"
    )


def of_episodes(config: TrainConfig) -> str:
    """What is not in the estimate, where a task acts."""
    acting = [name for name, task in (config.tasks or {}).items() if isinstance(task, ActingTask)]
    if not acting:
        return ""
    return (
        f". Episodes are not estimated ({', '.join(acting)}): they are counted as one turn each, "
        "without what their environments take and what is read anew for every turn"
    )


def longest_step(
    config: TrainConfig, found: Measured, largest: LargestUpdate
) -> tuple[float, float, float]:
    """Seconds of writing, scoring and updating in a step whose responses all have
    ``max_new_tokens``, in proportion to what was measured: writing to the tokens of the
    longest response of each batch, scoring to the tokens of the prompts and of what is scored, and
    updating to those that the student computes."""
    rollout = config.rollout
    responses = rollout.prompts_per_step * rollout.group_size
    batches = -(-responses // rollout.batch_size)
    scored = responses * (found.prompt + config.scoring.scored(rollout.max_new_tokens))
    return (
        batches * rollout.max_new_tokens * found.rollout / found.steps,
        scored * found.teacher / found.read,
        largest.tokens * found.update / found.computed,
    )


def _time(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
