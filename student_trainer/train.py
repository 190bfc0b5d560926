"""A training run, from its configuration to its report and model card."""

from __future__ import annotations

import logging
import sys
import tomllib
from pathlib import Path
from typing import Any

from teacher_proto.program.files import write_text
from teacher_proto.program.settings_show import to_toml

from student_trainer.data import PromptOrder, PromptSets
from student_trainer.evaluate_run import RunEvaluation
from student_trainer.first_example import first_example, wants_colour
from student_trainer.loop import TrainingLoop
from student_trainer.report.hub import push
from student_trainer.report.model_card import write_card
from student_trainer.run.directory import RunDirectory, prepare, read_metrics
from student_trainer.run.lock import locked
from student_trainer.run.progress import Progress
from student_trainer.run.signals import Stopper
from student_trainer.settings.train import TrainConfig
from student_trainer.startup import steps
from student_trainer.startup.start import Start, make
from student_trainer.student.model import Student, save_final
from student_trainer.teacher.link import TeacherLink
from student_trainer.trackers import RunFacts, Trackers

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
    with Start(config, holds_lock=True) as start:
        make(steps.STEPS, start)
        student, teacher, prompts = start.student, start.teacher, start.prompts
        with Stopper() as stopper:
            loop = TrainingLoop(config, student, teacher, prompts, run, stopper)
            if start.checkpoint:
                loop.restore(start.checkpoint)
            prepare(run, loop.state.step)
            write_text(run.config, to_toml(config))
            if not start.checkpoint:
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
