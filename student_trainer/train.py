"""A training run, from its configuration to its report and model card."""

from __future__ import annotations

import logging
import sys
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError
from teacher_proto.errors import LsmError
from teacher_proto.program.files import atomic_folder, write_text
from teacher_proto.program.settings_show import to_toml

from student_trainer.data import PromptSets
from student_trainer.evaluate_run import RunEvaluation
from student_trainer.first_example import first_example, wants_colour
from student_trainer.loop import TrainingLoop
from student_trainer.report import write_report
from student_trainer.report.hub import push
from student_trainer.report.model_card import write_card
from student_trainer.report.summary import write_summary
from student_trainer.run.directory import RunDirectory, keep_sources, prepare, read_metrics
from student_trainer.run.lock import locked
from student_trainer.run.progress import Progress
from student_trainer.run.signals import Stopper
from student_trainer.settings.dotted import sources
from student_trainer.settings.train import TrainConfig
from student_trainer.startup import steps
from student_trainer.startup.start import Start, make
from student_trainer.student.model import Student, save_final
from student_trainer.teacher.teachers import Teachers
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
    with locked(run.path), told_by_path(run.path):
        return _train(config, run)


def _train(config: TrainConfig, run: RunDirectory) -> Path:
    with Start(config, holds_lock=True) as start:
        make(steps.STEPS, start)
        student, teachers, prompts = start.student, start.teachers, start.prompts
        with Stopper() as stopper:
            loop = TrainingLoop(config, student, teachers, prompts, run, stopper, start.now)
            if start.checkpoint:
                loop.restore(start.checkpoint)
            prepare(run, loop.state.step)
            if loop.state.step < config.run.steps and (run.evaluation / "after.json").is_file():
                # Of the student before the steps that are made now.
                (run.evaluation / "after.json").unlink()
            write_text(run.config, to_toml(config))
            keep_sources(run, sources(config))
            if not start.checkpoint:
                _show_first_example(config, student, prompts, teachers)
            evaluation = RunEvaluation(config, student, teachers, prompts, run)
            with (
                _trackers(config, run) as trackers,
                Progress(config.run.steps, loop.state.step, trackers=trackers) as progress,
            ):
                progress.phase("evaluating")
                evaluation.before(loop.state.step)
                progress.phase("training")
                loop.run_steps(progress)
                # Saved first: whatever fails from here on, the trained model is there.
                merge = bool(config.student.lora and config.student.lora.merge_final)
                with atomic_folder(run.model, replace=True) as folder:
                    trained = save_final(student, folder, merge=merge)
                progress.phase("evaluating")
                with closing(run, "the closing evaluation"):
                    evaluation.after(trained)
                with closing(run, "the summary"):
                    summary = write_summary(run.path)
                    trackers.log(loop.state.step, {f"summary/{k}": v for k, v in summary.items()})
    with closing(run, "the model card"):
        write_card(
            run.model,
            config,
            {name: link.info for name, link in teachers.items()},
            summary,
            read_metrics(run.metrics),
            prompts=len(prompts.train),
            dropped=prompts.dropped + len(prompts.left_out),
        )
    if config.report.html:
        with closing(run, "the report"):
            write_report(run.path)
    if config.hub.repo is not None:
        with closing(run, "the push"):
            log.info("pushed to %s", push(run.model, config.hub.repo, private=config.hub.private))
    return run.path


@contextmanager
def closing(run: RunDirectory, what: str) -> Iterator[None]:
    """Around what is done once the model is saved: an error says that it is."""
    try:
        yield
    except Exception:
        log.error(
            "every step is made, and the trained model is saved in %s; what failed is %s. The run, "
            "started again, makes it again and trains nothing",
            run.model, what,
        )  # fmt: skip
        raise


@contextmanager
def told_by_path(directory: Path) -> Iterator[None]:
    """Makes an error of the system about a file of the run an LsmError that names the file."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        name = getattr(error, "filename", directory)
        if isinstance(error, LsmError) or not name or not is_inside(Path(str(name)), directory):
            raise
        raise LsmError(
            f"cannot write {name}: {getattr(error, 'strerror', error)}",
            where="run.output_dir",
            fix="free space, or mend the directory, then start again: the run resumes",
        ) from error


def is_inside(path: Path, directory: Path) -> bool:
    return directory.absolute() in (path.absolute(), *path.absolute().parents)


def _trackers(config: TrainConfig, run: RunDirectory) -> Trackers:
    settings = tomllib.loads(to_toml(config))  # leaves secrets out
    facts = RunFacts(config.tracking.project, config.run.name, run.path, settings)
    return Trackers(config.tracking.trackers, facts)


def _show_first_example(
    config: TrainConfig, student: Student, prompts: PromptSets, teachers: Teachers
) -> None:
    first = prompts.first(config.run.seed)
    teacher = teachers.of(first)
    text = first_example(
        student,
        first,
        config.rollout,
        config.loss,
        config.run.seed,
        teacher=teacher if teacher.realigned else None,
        reads=teacher.reading.ending(first),
        colour=wants_colour(sys.stderr),
    )
    log.info("%s", text)
