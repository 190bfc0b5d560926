"""A training run, from its configuration to its report and model card."""

from __future__ import annotations

import logging
import sys
import tomllib
from pathlib import Path
from typing import Any

import torch
from teacher_proto.errors import ConfigurationError
from teacher_proto.program.files import write_text
from teacher_proto.program.settings_show import to_toml

from student_trainer.data import PromptOrder, PromptSets
from student_trainer.evaluate_run import RunEvaluation
from student_trainer.evaluation import evaluated_prompts
from student_trainer.first_example import first_example, wants_colour
from student_trainer.loop import TrainingLoop
from student_trainer.prompt_needs import check_ids, notes, read_prompts
from student_trainer.report.hub import check_can_push, push
from student_trainer.report.model_card import write_card
from student_trainer.run.directory import RunDirectory, find_checkpoint, prepare, read_metrics
from student_trainer.run.lock import locked
from student_trainer.run.progress import Progress
from student_trainer.run.signals import Stopper
from student_trainer.settings.train import TrainConfig
from student_trainer.student.model import Student, load_student, save_final
from student_trainer.student.vocabulary import describe_vocabulary
from student_trainer.teacher.connection import check_reachable
from student_trainer.teacher.link import TeacherLink
from student_trainer.trackers import RunFacts, Trackers, check_installed

log = logging.getLogger(__name__)


def train(config: TrainConfig) -> Path:
    """Trains a student and returns its run directory.

    Raises:
        ConfigurationError: among others, another run writes in the directory.
        LsmError: see docs/errors.md. The state before the failed step is saved.
        Stopped: a signal ended the run. Its state is saved.
    """
    run = RunDirectory(config.run.output_dir)
    with locked(run.path):
        return _train(config, run)


def _train(config: TrainConfig, run: RunDirectory) -> Path:
    found = find_checkpoint(run, config.checkpoint.resume)
    check_installed(config.tracking.trackers)
    if config.hub.repo is not None:
        check_can_push(config.hub.repo)
    check_reachable(config.teacher, config.run.name)
    prompts = read_prompts(config)
    for note in notes(prompts, config):
        log.warning("%s", note)
    torch.manual_seed(config.run.seed)
    student = load_student(config.student, found / "model" if found else None)
    if student.head.undrawn is not None:
        log.info(
            "the student: %s", describe_vocabulary(student.head.undrawn, student.vocabulary_size)
        )
    check_ids(prompts, student)
    evaluates = bool(evaluated_prompts(prompts.held_out, config.evaluation))
    check_lengths(config, student, evaluates)
    with (
        TeacherLink(config.teacher, student, run=config.run.name) as teacher,
        Stopper() as stopper,
    ):
        check_realigned(config, teacher)
        teacher.check_fits(
            top_k=config.loss.teacher_top_k,
            explicit=config.loss.student_top_k,
            longest_prompt=config.data.max_prompt_tokens,
            longest_response=longest_response(config, evaluates),
        )
        loop = TrainingLoop(config, student, teacher, prompts, run, stopper)
        if found:
            loop.restore(found)
        prepare(run, loop.state.step)
        write_text(run.config, to_toml(config))
        if not found:
            _show_first_example(config, student, prompts, teacher)
        evaluation = RunEvaluation(config, student, teacher, prompts, run)
        with (
            _trackers(config, run) as trackers,
            Progress(config.run.steps, loop.state.step, trackers=trackers) as progress,
        ):
            progress.phase("evaluating")
            evaluation.before(loop.state.step)
            progress.phase("training")
            loop.run_steps(progress)
            progress.phase("evaluating")
            evaluation.after()
            save_final(
                student,
                run.model,
                merge=bool(config.student.lora and config.student.lora.merge_final),
            )
            summary = report(config, run)
            trackers.log(loop.state.step, {f"summary/{k}": v for k, v in summary.items()})
    write_card(
        run.model,
        config,
        teacher.info,
        summary,
        read_metrics(run.metrics),
        prompts=len(prompts.train),
        dropped=prompts.dropped,
    )
    if config.hub.repo is not None:
        log.info("pushed to %s", push(run.model, config.hub.repo, private=config.hub.private))
    return run.path


def _trackers(config: TrainConfig, run: RunDirectory) -> Trackers:
    settings = tomllib.loads(to_toml(config))  # leaves secrets out
    facts = RunFacts(config.tracking.project, config.run.name, run.path, settings)
    return Trackers(config.tracking.trackers, facts)


def _show_first_example(
    config: TrainConfig, student: Student, prompts: PromptSets, teacher: TeacherLink
) -> None:
    (first,) = PromptOrder(config.run.seed, len(prompts.train)).take(0, 1)
    text = first_example(
        student,
        prompts.train[first],
        config.rollout,
        config.loss,
        config.run.seed,
        teacher=teacher if teacher.realigned else None,
        colour=wants_colour(sys.stderr),
    )
    log.info("%s", text)


def report(config: TrainConfig, run: RunDirectory) -> dict[str, Any]:
    """Writes summary.json, and the report unless ``report.html`` is off.

    Returns:
        The summary.
    """
    from student_trainer.report.summary import write_summary

    summary = write_summary(run.path)
    if config.report.html:
        from student_trainer.report import write_report

        write_report(run.path)
    return summary


def check_realigned(config: TrainConfig, teacher: TeacherLink) -> None:
    """Logs how the two tokenizers relate, and refuses settings that need a shared one.

    Raises:
        ConfigurationError: the loss needs a mass that is not known across tokenizers.
    """
    if not teacher.realigned:
        return
    log.info("%s", teacher.describe_tokenizers())
    if config.loss.needs_log_tail:
        raise ConfigurationError(
            'tail = "bucket" needs the teacher\'s mass outside the support, and across tokenizers '
            "a part of it is not settled: it could belong to the support",
            where="loss.tail",
            fix='set loss.tail = "none"',
        )


def longest_response(config: TrainConfig, evaluates: bool) -> int:
    """Tokens of the longest response that the run may send to the teacher."""
    return max(new for _, new in _response_limits(config, evaluates))


def _response_limits(config: TrainConfig, evaluates: bool) -> list[tuple[str, int]]:
    """The settings that bound a response's length, with their values in tokens."""
    limits = [("rollout.max_new_tokens", config.rollout.max_new_tokens)]
    if evaluates:
        limits.append(("evaluation.max_new_tokens", config.evaluation.max_new_tokens))
    return limits


def check_lengths(config: TrainConfig, student: Student, evaluates: bool) -> None:
    """Refuses prompts and responses that are longer than the student's positions.

    Args:
        evaluates: whether there are prompts to evaluate on.

    Raises:
        ConfigurationError: the longest sequence is too long.
    """
    for key, new in _response_limits(config, evaluates):
        longest = config.data.max_prompt_tokens + new
        if longest > student.max_length:
            raise ConfigurationError(
                f"data.max_prompt_tokens + {key} = {longest} is more than the student's "
                f"{student.max_length} positions",
                where=key,
                fix="lower one of them",
            )
