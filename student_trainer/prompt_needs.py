"""What a run needs of its prompts: checked when they are read, before any model is
loaded, by ``train``, ``doctor`` and ``train --dry-run`` alike.
"""

from __future__ import annotations

from teacher_proto.errors import ConfigurationError

from student_trainer.data import PromptSets, load_prompts
from student_trainer.data.tasks.reading import load_task_prompts
from student_trainer.evaluation.frozen import HOLD_OUT, ROUNDS, evaluated_prompts
from student_trainer.settings.evaluation import EvaluationSettings
from student_trainer.settings.train import TrainConfig
from student_trainer.student.model import Student
from student_trainer.student.tokenizer import load_tokenizer


def read_prompts(config: TrainConfig, now: str = "") -> PromptSets:
    """Reads the prompts and checks that they are enough for the settings.

    Args:
        now: the run's clock (``data.run_clock``); empty for ``data.now``, or this moment.

    Raises:
        ConfigurationError: as ``load_tokenizer``, ``load_prompts``, ``load_task_prompts`` and
            ``check_prompts``.
    """
    tokenizer = load_tokenizer(config.student)
    if config.tasks is None:
        prompts = load_prompts(
            config.data,
            tokenizer,
            seed=config.run.seed,
            now=now,
            teachers=list(config.named_teachers),
        )
    else:
        prompts = load_task_prompts(config, tokenizer, now=now)
    check_prompts(config, prompts)
    return prompts


def check_prompts(config: TrainConfig, prompts: PromptSets) -> None:
    """Refuses settings that need more than these prompts.

    Raises:
        ConfigurationError: fewer prompts are held out than ``evaluation.prompts``, or
            their answers cannot have ``evaluation.frozen_rows`` positions.
    """
    settings = config.evaluation
    count = len(evaluated_prompts(prompts.held_out, settings))
    most = ROUNDS * count * settings.max_new_tokens
    if count and settings.frozen_rows is not None and settings.frozen_rows > most:
        raise ConfigurationError(
            f"{settings.frozen_rows} positions are to be frozen, and {ROUNDS} answers to each of "
            f"{count} held-out prompts have at most {most}",
            where="evaluation.frozen_rows",
            fix="unset it, hold out more prompts or raise evaluation.max_new_tokens",
        )


def check_ids(prompts: PromptSets, student: Student) -> None:
    """Raises ConfigurationError when a prompt has a token beyond the ids of the model."""
    for prompt in (*prompts.train, *prompts.held_out):
        highest = int(prompt.token_ids.max())
        if highest >= student.vocabulary_size:
            raise ConfigurationError(
                f"a prompt has token {highest}, and the student's head has "
                f"{student.vocabulary_size} ids",
                where="student.model",
                fix="give the student a tokenizer of its own size",
            )


def describe_prompts(prompts: PromptSets, settings: EvaluationSettings) -> str:
    """One sentence on how the prompts are used."""
    longest = max(len(prompt.token_ids) for prompt in prompts.train)
    evaluated = len(evaluated_prompts(prompts.held_out, settings))
    return (
        f"{len(prompts.train)} prompts to train on, {len(prompts.held_out)} held out, "
        f"{prompts.dropped} dropped; the longest has {longest} tokens; {evaluated} are evaluated on"
    )


def notes(prompts: PromptSets, config: TrainConfig) -> list[str]:
    """Where the prompts differ from what the defaults expect, and what is left out of
    the data, one sentence each."""
    found = list(prompts.notes)
    held_out, per_step = len(prompts.held_out), config.rollout.prompts_per_step
    if config.evaluation.prompts is None and held_out < config.evaluation.most_prompts:
        found.append(
            f"evaluation is on all {held_out} held-out prompts, fewer than the usual "
            f"{config.evaluation.most_prompts}"
            if held_out
            else f"no prompt is held out ({HOLD_OUT}), so nothing is evaluated"
        )
    if per_step > len(prompts.train):
        found.append(
            f"a step takes {per_step} prompts (rollout.prompts_per_step) and there are "
            f"{len(prompts.train)}: some are answered more than once in it"
        )
    return found
