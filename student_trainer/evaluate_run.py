"""Evaluation before and after a run, on positions that are frozen before its first step."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from functools import partial
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
    load_frozen,
    part_of_teacher,
    save_evaluation,
    save_frozen,
    together,
)
from student_trainer.events import EvaluationEnded
from student_trainer.rollout.base import PromptItem
from student_trainer.run.directory import RunDirectory
from student_trainer.settings.evaluation import EvaluationSettings
from student_trainer.settings.train import TrainConfig
from student_trainer.student.model import Student
from student_trainer.teacher.teachers import Teachers


class RunEvaluation:
    """Writes ``evaluation/frozen.json``, ``before.json`` and ``after.json``.

    A resumed run keeps the files it finds, so that both evaluations are on the same
    positions. With ``evaluation.prompts = 0``, or with no held-out prompts, nothing is
    evaluated.
    """

    def __init__(
        self,
        config: TrainConfig,
        student: Student,
        teachers: Teachers,
        prompts: PromptSets,
        run: RunDirectory,
    ) -> None:
        self.config = config
        self.student = student
        self.teachers = teachers
        self.prompts = prompts
        self._run = run
        self.directory = run.evaluation
        self._frozen = run.evaluation / "frozen.json"
        self._cache = run.evaluation / "cache"

    @property
    def enabled(self) -> bool:
        return len(evaluated_prompts(self.prompts.held_out, self.config.evaluation)) > 0

    def before(self, step: int) -> EvaluationEnded | None:
        """Freezes the positions and evaluates the untrained student; None where that is done
        already, or there is nothing to evaluate on.

        Args:
            step: completed steps. After step 0 the files must exist already.

        Raises:
            ConfigurationError: as ``kept_positions``; or fewer prompts are held out than
                the settings require.
        """
        if not self.enabled:
            return None
        settings = self.config.evaluation
        if kept_positions(self._run, step, self.prompts.held_out, settings) is not None:
            return None
        if not self._frozen.exists():
            frozen = freeze_continuations(
                self.student,
                self.prompts.held_out,
                self.config.evaluation,
                self.config.rollout,
                self.config.run.seed,
            )
            save_frozen(frozen, self._frozen)
        return self._save("before")

    def after(self, student: Student) -> EvaluationEnded | None:
        """Evaluates the trained student on the same positions; None where there are none."""
        if not self.enabled:
            return None
        self.student = student
        ended = self._save("after")
        shutil.rmtree(self._cache, ignore_errors=True)
        return ended

    def _save(self, when: Literal["before", "after"]) -> EvaluationEnded:
        evaluation, path = self._measure(), self.directory / f"{when}.json"
        save_evaluation(evaluation, path)
        return EvaluationEnded(when, evaluation, path)

    def _measure(self) -> Evaluation:
        measure = partial(
            evaluate,
            self.student,
            rollout_settings=self.config.rollout,
            seed=self.config.run.seed,
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
