"""A training run, from its configuration to its report and model card."""

from __future__ import annotations

import json
import logging
import sys
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from functools import partial
from os import PathLike
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from teacher_proto.errors import LsmError
from teacher_proto.program.files import write_text
from teacher_proto.program.settings_show import to_toml

from student_trainer.data import PromptSets
from student_trainer.distributed.world import World, joined, lost
from student_trainer.evaluation.course.values import curve_values
from student_trainer.events import (
    Callback,
    Events,
    RunEnded,
    RunResult,
    RunStarted,
    check_callbacks,
)
from student_trainer.first_example import first_example, wants_colour
from student_trainer.loop import TrainingLoop
from student_trainer.ranks.trained import save_trained
from student_trainer.report import write_report
from student_trainer.report.hub import push
from student_trainer.report.model_card import write_card
from student_trainer.report.summary import write_summary
from student_trainer.run.directory import RunDirectory, keep_sources, prepare, read_metrics
from student_trainer.run.lock import locked
from student_trainer.run.machine import describe_machine
from student_trainer.run.progress import Progress, loading
from student_trainer.run.signals import Stopper
from student_trainer.settings.dotted import sources
from student_trainer.settings.resolve import config_of
from student_trainer.settings.train import TrainConfig
from student_trainer.startup import steps
from student_trainer.startup.start import Start, make
from student_trainer.student.model import Student
from student_trainer.student.sharding import gathered
from student_trainer.teacher.teachers import Teachers
from student_trainer.trackers import RunFacts, Trackers
from student_trainer.watch import files as kept_files

log = logging.getLogger(__name__)


class Trainer:
    """A training run, as ``student-trainer train`` makes it.

        result = Trainer("config.toml", callbacks=[tell]).train()
        print(result.path, result.summary["steps"])

    Attributes:
        config: its settings.
    """

    def __init__(
        self,
        config: TrainConfig | Mapping[str, Any] | str | PathLike[str],
        callbacks: Sequence[Callback] = (),
        *,
        quiet: bool = False,
    ) -> None:
        """
        Args:
            config: the settings, their values as a dict nested as in TOML, or the path of a TOML
                file or ``recipe:NAME``. Environment variables (``LSM_TRAINER__...``) override
                the last three.
            callbacks: called with every event (``student_trainer.events``), in order, in the
                thread that calls ``train``.
            quiet: writes neither a bar nor lines of metrics to standard output.

        Raises:
            ConfigurationError: a setting is wrong, or a callback cannot be called.
        """
        self.config = config_of(config)
        self._callbacks = check_callbacks(callbacks)
        self._quiet = quiet

    def train(self) -> RunResult:
        """Trains the student; goes on where an earlier call, or another process, has ended. Where
        torchrun has started several ranks, each of them calls it; rank 0 alone tells callbacks,
        of rollouts and scores those of its own share, and writes the run's directory.

        Raises:
            ConfigurationError: among others, another run writes in the directory.
            CallbackError: a callback raised; names it and the event. The state after the last
                complete step is saved, and so is the trained model once there is one.
            LsmError: see docs/errors.md. The state before the failed step is saved.
            RankError: another rank has failed, or is gone.
            Stopped: a signal ended the run. Its state is saved.
        """
        with joined(self.config.distributed.timeout) as world:
            try:
                return self._train(world)
            except RuntimeError as error:
                ended = lost(world, error)
                if ended is None:
                    raise
                raise ended from error

    def _train(self, world: World) -> RunResult:
        run = RunDirectory(self.config.run.output_dir)
        with told_by_path(run.path), ExitStack() as held:
            world.on_first(lambda: held.enter_context(locked(run.path)))
            callbacks = self._callbacks if world.writes else ()
            return _train(self.config, run, callbacks, self._quiet or not world.writes, world)


def train(config: TrainConfig) -> Path:
    """``Trainer(config).train()``; returns the run's directory."""
    return Trainer(config).train().path


def _train(
    config: TrainConfig,
    run: RunDirectory,
    callbacks: Sequence[Callback],
    quiet: bool,
    world: World,
) -> RunResult:
    with Start(config, holds_lock=True, world=world) as start:
        with loading(quiet=quiet) as begins:
            make(steps.steps_of(world), start, begins)
        student, teachers, prompts = start.student, start.teachers, start.prompts
        with Stopper() as stopper:
            loop = TrainingLoop(
                config,
                student,
                start.engine,
                teachers,
                prompts,
                run,
                stopper,
                start.now,
                callbacks,
                world,
                start.verifiers,
                start.acting,
            )
            events = loop.events
            if found := start.checkpoint:
                loop.restore(found)
            world.on_first(lambda: _begin(config, run, loop, student), however_long=True)
            evaluated = partial(gathered, student) if loop.evaluation.enabled else nullcontext
            with gathered(student):
                if not start.checkpoint:
                    world.on_first(lambda: _show_first_example(config, student, prompts, teachers))
            with (
                _trackers(config, run, world) as trackers,
                Progress(
                    config.run.steps, loop.state.step, trackers=trackers, quiet=quiet
                ) as progress,
            ):

                def evaluate_before() -> None:
                    if before := loop.evaluation.before(loop.state.step):
                        progress.evaluated(0, curve_values(before.evaluation))
                        events.tell(before)

                progress.phase("evaluating the untrained student")
                with evaluated():
                    world.on_first(evaluate_before, however_long=True)
                progress.phase("training")
                loop.run_steps(progress)
                # Saved first: whatever fails from here on, the trained model is there.
                trained = save_trained(student, config, run.model, world)
                progress.phase("evaluating the trained student")

                def evaluate_after() -> dict[str, Any]:
                    with closing(run, "the closing evaluation"):
                        after = loop.evaluation.after(trained, loop.state.step)
                    with closing(run, "the summary"):
                        summary = write_summary(run.path)
                        values = {f"summary/{k}": v for k, v in summary.items()}
                        trackers.log(loop.state.step, values)
                    if after:
                        with closing(run, "a callback"):
                            events.tell(after)
                    return dict(summary)

                with evaluated():
                    summary = world.from_first(world.on_first(evaluate_after, however_long=True))
    result = RunResult(run.path, summary)
    world.on_first(lambda: _close(config, result, prompts, teachers, events), however_long=True)
    return result


def _close(
    config: TrainConfig, result: RunResult, prompts: PromptSets, teachers: Teachers, events: Events
) -> None:
    """Publishes what a run has made."""
    run = RunDirectory(result.path)
    with closing(run, "the model card"):
        write_card(
            run.model,
            config,
            {name: link.info for name, link in teachers.items()},
            result.summary,
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
    with closing(run, "a callback"):
        events.tell(RunEnded(result))


def _begin(config: TrainConfig, run: RunDirectory, loop: TrainingLoop, student: Student) -> None:
    """Brings the run's directory to where the run begins, and says that it does."""
    step = loop.state.step
    loop.events.tell(RunStarted(run.path, config, step))
    prepare(run, step)
    loop.evaluation.forget_after(step)
    kept_files.remove_after(run.rollouts, step)
    write_text(run.config, to_toml(config))
    write_text(run.machine, json.dumps(describe_machine(student.device), indent=1) + "\n")
    keep_sources(run, sources(config))


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


def _trackers(config: TrainConfig, run: RunDirectory, world: World) -> Trackers:
    settings = tomllib.loads(to_toml(config))  # leaves secrets out
    facts = RunFacts(config.tracking.project, config.run.name, run.path, settings)
    return Trackers(config.tracking.trackers if world.writes else (), facts)


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
        scoring=config.scoring,
        teacher=teacher if teacher.realigned else None,
        asked=config.rows_asked(first.teacher, realigned=teacher.realigned),
        reads=teacher.reading.ending(first),
        colour=wants_colour(sys.stderr),
    )
    log.info("%s", text)
