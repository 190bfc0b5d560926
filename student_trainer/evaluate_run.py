"""Evaluation before, during and after a run, on positions that are frozen before its first step."""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Literal

from teacher_proto.errors import ConfigurationError

from student_trainer.data import PromptSets
from student_trainer.evaluation import (
    Evaluation,
    FrozenPositions,
    evaluate,
    evaluated_prompts,
    freeze_continuations,
    frozen_prompts,
    load_evaluation,
    load_frozen,
    part_of_teacher,
    save_evaluation,
    save_frozen,
    together,
)
from student_trainer.evaluation.accuracy import measure_tasks, nothing_plays
from student_trainer.evaluation.course.points import (
    best_point,
    file_of,
    remove_after,
    steps_of,
    without_improvement,
)
from student_trainer.evaluation.course.values import curve_values
from student_trainer.events import EvaluationEnded
from student_trainer.rollout.base import PromptItem
from student_trainer.rollout.turns.acting import Acting
from student_trainer.run.directory import RunDirectory
from student_trainer.run.rng import capture_rng, restore_rng
from student_trainer.settings.evaluation import EvaluationSettings
from student_trainer.settings.train import TrainConfig
from student_trainer.student.model import Student
from student_trainer.tasks.environment import ActingTask
from student_trainer.teacher.teachers import Teachers
from student_trainer.verification.verifiers import Verifiers


class RunEvaluation:
    """Writes ``evaluation/frozen.json``, ``before.json``, ``step-NNNNNN.json`` and ``after.json``.

    A resumed run keeps the files it finds, so that all evaluations are on the same positions and
    the curve goes on. With ``evaluation.prompts = 0``, or with no held-out prompts, nothing is
    evaluated. An evaluation draws nothing from torch's generators, and leaves them as they are.
    """

    def __init__(
        self,
        config: TrainConfig,
        student: Student,
        teachers: Teachers,
        prompts: PromptSets,
        run: RunDirectory,
        verifiers: Verifiers | None = None,
        acting: Acting | None = None,
    ) -> None:
        """
        Args:
            verifiers: what judges responses; None where no task of the run does.
            acting: what plays episodes; None where no task acts.

        Raises:
            ConfigurationError: a task acts, and nothing plays its episodes.
        """
        for name, task in (config.tasks or {}).items():
            if isinstance(task, ActingTask) and acting is None:
                raise nothing_plays(name)
        self._acting = acting
        self.config = config
        self.student = student
        self.teachers = teachers
        self.prompts = prompts
        self._verifiers = verifiers
        self._run = run
        self.directory = run.evaluation
        self._frozen = run.evaluation / "frozen.json"
        self._cache = run.evaluation / "cache"
        self._values: dict[int, Mapping[str, float]] = {}

    @property
    def enabled(self) -> bool:
        return len(evaluated_prompts(self.prompts.held_out, self.config.evaluation)) > 0

    def before(self, step: int) -> EvaluationEnded | None:
        """Freezes the positions and evaluates the untrained student; None where that is done
        already, or there is nothing to evaluate on.

        Args:
            step: completed steps. After step 0 the files must exist already.

        Raises:
            ConfigurationError: as ``kept_positions`` and ``value``; or fewer prompts are held
                out than the settings require.
        """
        if not self.enabled:
            return None
        settings = self.config.evaluation
        if kept_positions(self._run, step, self.prompts.held_out, settings) is not None:
            self.value(0)
            return None
        if not self._frozen.exists():
            frozen = freeze_continuations(
                self.student,
                self.prompts.held_out,
                self.config.evaluation,
                self.config.rollout,
                self.config.run.seed,
                self._acting,
            )
            save_frozen(frozen, self._frozen)
        ended = self._save("before", file_of(self.directory, 0), 0)
        self.value(0)
        return ended

    def forget_after(self, step: int) -> None:
        """Removes what an earlier attempt measured after later steps; and its closing
        evaluation, where more steps are to be made."""
        remove_after(self.directory, step)
        after = self.directory / "after.json"
        if step < self.config.run.steps and after.is_file():
            after.unlink()

    def due(self, step: int) -> bool:
        """Whether the student is to be evaluated after ``step`` completed steps, and is not yet."""
        every = self.config.evaluation.every
        due = every and step and (step % every == 0 or step == self.config.run.steps)
        return bool(due and self.enabled and not file_of(self.directory, step).is_file())

    def during(self, step: int) -> EvaluationEnded | None:
        """Evaluates the student after ``step`` completed steps; None where that is not due.

        Raises:
            ConfigurationError: it measures no value by which a checkpoint is to be the best.
        """
        if not self.due(step):
            return None
        path = file_of(self.directory, step)
        ended = self._save("during", path, step)
        self.value(step)
        return ended

    def value(self, step: int) -> float | None:
        """The held-out value of ``checkpoint.best`` after ``step`` steps; None where
        ``checkpoint.best`` names none, or none was measured then.

        Raises:
            ConfigurationError: there is no such value among those that were measured.
        """
        best, path = self.config.checkpoint.best_held_out, file_of(self.directory, step)
        if best is None or not path.is_file():
            return None
        values = self._values.get(step) or curve_values(load_evaluation(path))
        self._values[step] = values
        if best not in values:
            raise ConfigurationError(
                f"an evaluation measures no {best!r}",
                where="checkpoint.best",
                fix=f"name one of {', '.join(f'held_out/{name}' for name in values)}",
            )
        return values[best]

    def is_best(self, step: int) -> bool:
        """Whether the evaluation after ``step`` steps is the best so far by ``checkpoint.best``,
        of those after a step: the untrained student has no checkpoint."""
        steps = [one for one in self._steps(step) if one]
        values = [self.value(one) for one in steps]
        best = best_point(values, self.config.checkpoint.best_goal)
        return best is not None and steps[best] == step

    def out_of_patience(self, step: int) -> bool:
        """Whether ``evaluation.patience`` evaluations in a row, up to ``step``, are not better
        than the best before them."""
        patience = self.config.evaluation.patience
        if patience is None:
            return False
        values = [self.value(one) for one in self._steps(step)]
        return without_improvement(values, self.config.checkpoint.best_goal) >= patience

    def after(self, student: Student, step: int) -> EvaluationEnded | None:
        """Evaluates the trained student on the same positions, after its last step; None where
        there are none. What was measured of the same weights is not measured again."""
        if not self.enabled:
            return None
        path, known = self.directory / "after.json", file_of(self.directory, step)
        if student is self.student and step and known.is_file():
            evaluation = load_evaluation(known)
            save_evaluation(evaluation, path)
            ended = EvaluationEnded("after", evaluation, path, step)
        else:
            self.student = student
            ended = self._save("after", path, step)
        shutil.rmtree(self._cache, ignore_errors=True)
        return ended

    def _steps(self, step: int) -> list[int]:
        return [one for one in steps_of(self.directory) if one <= step]

    def _save(
        self, when: Literal["before", "during", "after"], path: Path, step: int
    ) -> EvaluationEnded:
        drawn = capture_rng(self.student.device)
        try:
            evaluation = self._with_tasks(self._measure())
        finally:
            restore_rng(drawn, self.student.device)
        save_evaluation(evaluation, path)
        return EvaluationEnded(when, evaluation, path, step)

    def _with_tasks(self, evaluation: Evaluation) -> Evaluation:
        """The evaluation with the results of tasks that judge."""
        if self._verifiers is None:
            return evaluation
        started = time.monotonic()
        tasks = measure_tasks(
            self.student,
            self._verifiers,
            self.prompts.held_out,
            self.config.evaluation,
            self.config.rollout,
            seed=self.config.run.seed,
            acting=self._acting,
        )
        seconds = evaluation.seconds + time.monotonic() - started
        return replace(evaluation, tasks=tasks, seconds=seconds)

    def _measure(self) -> Evaluation:
        measure = partial(
            evaluate,
            self.student,
            rollout_settings=self.config.rollout,
            seed=self.config.run.seed,
            acting=self._acting,
        )
        frozen, settings = load_frozen(self._frozen), self.config.evaluation
        if not self.teachers.several:
            (link,) = self.teachers.values()
            return measure(link, frozen, self.prompts.held_out, settings, cache=self._cache)
        prompts = frozen_prompts(frozen, self.prompts.held_out, settings)
        by_teacher = {}
        for name, link in self.teachers.items():
            own = part_of_teacher(frozen, prompts, name)
            if own.prompts:
                its = [prompt for prompt in prompts if prompt.teacher == name]
                limited = settings.model_copy(update={"prompts": len(its)})
                cache = self._cache / name
                by_teacher[name] = measure(link, own, its, limited, cache=cache)
        return together(by_teacher, frozen, settings.samples)


def kept_positions(
    run: RunDirectory, step: int, held_out: Sequence[PromptItem], settings: EvaluationSettings
) -> FrozenPositions | None:
    """The positions that an earlier attempt froze, whose files a resumed run goes on with;
    None where there is nothing to go on with.

    Args:
        step: completed steps. After step 0 the files must exist.

    Raises:
        ConfigurationError: a resumed run has lost its files, or holds out other prompts.
    """
    frozen, before = run.evaluation / "frozen.json", run.evaluation / "before.json"
    if frozen.exists() and before.exists():
        positions = load_frozen(frozen)
        frozen_prompts(positions, held_out, settings)
        return positions
    if step > 0:
        raise ConfigurationError(
            f"{frozen} and {before.name} are missing, and the student has been trained since they "
            "were made",
            where="run.output_dir",
            fix="restore the run's evaluation directory, or set evaluation.prompts = 0 and "
            "name it in checkpoint.allow_changed",
        )
    return None
