"""The steps of a run.

    prompts of the step -> rollouts -> scores (in flight meanwhile) -> loss over
    micro-batches -> one mean -> clip -> AdamW -> metrics line -> checkpoint

A step depends on the configuration, the seed, the step's number and the
student alone, so that a resumed run repeats what was lost exactly.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from teacher_proto.errors import LsmError
from teacher_proto.types import ContinuationScores

from student_trainer import checkpoint, metrics, run_dir
from student_trainer.config import TrainConfig
from student_trainer.data import PromptOrder, PromptSets
from student_trainer.model import Student, save_weights
from student_trainer.progress import Progress
from student_trainer.resume import check_resumable
from student_trainer.rollout.base import PromptItem, Rollout
from student_trainer.rollout.generate import iterate_groups
from student_trainer.run_dir import RunDirectory
from student_trainer.signals import Stopped, Stopper
from student_trainer.student_support import with_student_support
from student_trainer.teacher import TeacherLink
from student_trainer.update import Updater, split

log = logging.getLogger(__name__)


@dataclass
class Times:
    """Seconds of a step by what the trainer's own thread did."""

    rollout: float = 0.0
    teacher_wait: float = 0.0


class TrainingLoop:
    """Steps of one run.

    Attributes:
        state: after the last completed step.
    """

    def __init__(
        self,
        config: TrainConfig,
        student: Student,
        teacher: TeacherLink,
        prompts: PromptSets,
        run: RunDirectory,
    ) -> None:
        self.config = config
        self.student = student
        self.teacher = teacher
        self.prompts = prompts
        self.run = run
        self.updater = Updater(student, config)
        self.order = PromptOrder(config.run.seed, len(prompts.train))
        self.state = checkpoint.TrainState(
            step=0,
            updates=0,
            position=0,
            data_digest=prompts.digest,
            teacher=teacher.info.identity,
            config=config.model_dump(mode="json"),
        )
        self._rng = checkpoint.capture_rng()
        self._saved_step = 0

    def restore(self, path: Path) -> None:
        """Goes on from a checkpoint whose model is already loaded.

        Raises:
            ConfigurationError, ContractMismatchError: it is of another run.
        """
        before = checkpoint.load_state(path)
        check_resumable(
            before,
            self.state.config,
            self.state.data_digest,
            self.state.teacher,
            self.config.checkpoint.allow_changed,
        )
        optimizer, rng = checkpoint.load_tensors(path)
        self.updater.optimizer.load(optimizer)
        self.updater.updates = before.updates
        self._rng = rng
        self.state = replace(
            self.state, step=before.step, updates=before.updates, position=before.position
        )
        self._saved_step = before.step
        log.info("resuming after step %d from %s", before.step, path)

    def run_steps(self, stopper: Stopper, progress: Progress) -> None:
        """Steps until ``run.steps``; whatever ends them, the state is saved."""
        checkpoint.restore_rng(self._rng)
        try:
            while self.state.step < self.config.run.steps:
                with stopper.step():
                    figures = self.step()
                    run_dir.append_metrics(self.run.metrics, figures)
                    progress.step(figures)
                    due = self.state.step % self.config.checkpoint.every == 0
                    if due or self.state.step == self.config.run.steps:
                        self.save()
                stopper.raise_if_requested()
        except (LsmError, Stopped):
            self.save_unless_saved()
            raise

    def step(self) -> dict[str, Any]:
        """One step; returns its metrics line."""
        config, number, start = self.config, self.state.step + 1, time.perf_counter()
        count = config.rollout.prompts_per_step
        chosen = [self.prompts.train[i] for i in self.order.take(self.state.position, count)]
        times = Times()
        groups, pending = self._roll_out(chosen, number, times)
        rollouts = [rollout for group in groups for rollout in group]
        size = config.rollout.group_size

        updating = time.perf_counter()
        waited_before = times.teacher_wait
        figures = metrics.UpdateFigures()
        for part in split(len(rollouts), config.optimizer.updates_per_batch):

            def scores(member: int, first: int = part.start) -> ContinuationScores:
                group, place = divmod(first + member, size)
                return _timed_result(pending[group], times)[place]

            self.updater.update(rollouts[part], scores, figures, number)
        ended = time.perf_counter()

        self.state = replace(
            self.state,
            step=number,
            updates=self.updater.updates,
            position=self.state.position + count,
        )
        self._rng = checkpoint.capture_rng()
        seconds = ended - start
        return {
            "step": number,
            **metrics.step_metrics(figures, rollouts),
            "rollout_seconds": times.rollout,
            "teacher_wait_seconds": times.teacher_wait,
            "update_seconds": ended - updating - (times.teacher_wait - waited_before),
            "step_seconds": seconds,
            "tokens_per_second": figures.rows / seconds,
            "teacher_identity": self.state.teacher.digest,
            "time": datetime.now(UTC).isoformat(),
        }

    def _roll_out(
        self, prompts: Sequence[PromptItem], number: int, times: Times
    ) -> tuple[list[list[Rollout]], list[Future[list[ContinuationScores]]]]:
        """Every group is sent to the teacher as soon as it is complete."""
        config = self.config
        groups, pending = [], []
        generated = iterate_groups(
            self.student, prompts, config.rollout, seed=config.run.seed, step=number
        )
        clock = time.perf_counter()
        for group in generated:
            done = time.perf_counter()
            times.rollout += done - clock
            loss = config.loss
            asked = with_student_support(
                self.student,
                group,
                loss.student_top_k,
                limit=self.teacher.info.vocabulary_size,
                micro_batch_tokens=config.optimizer.micro_batch_tokens,
                chunk_rows=loss.chunk_rows,
            )
            groups.append(asked)
            sending = time.perf_counter()
            times.rollout += sending - done
            pending.append(
                self.teacher.submit_rollouts(
                    asked, loss.teacher_top_k, loss.temperature, loss.needs_log_tail
                )
            )
            clock = time.perf_counter()
            times.teacher_wait += clock - sending
        return groups, pending

    def save(self) -> None:
        """Writes a checkpoint of ``state``."""
        assert self.updater.updates == self.state.updates, "between steps only"
        path = checkpoint.save(
            self.run.checkpoints,
            self.state,
            save_model=lambda directory: save_weights(self.student, directory),
            optimizer=self.updater.optimizer.state(),
            rng=self._rng,
            keep=self.config.checkpoint.keep,
        )
        self._saved_step = self.state.step
        log.info("saved %s", path)

    def save_unless_saved(self) -> None:
        """Saves the last completed step, unless it is saved or the student has
        moved on from it within a step of several updates."""
        clean = self.updater.updates == self.state.updates
        if clean and self.state.step > self._saved_step:
            self.save()


def _timed_result(
    future: Future[list[ContinuationScores]], times: Times
) -> list[ContinuationScores]:
    start = time.perf_counter()
    result = future.result()
    times.teacher_wait += time.perf_counter() - start
    return result
