"""The judgements of a step's responses, which are made while the step is updated on, or before it
where the step learns from them."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from teacher_proto.types import Float32

from student_trainer.distributed.world import World
from student_trainer.rollout.base import Rollout
from student_trainer.settings.train import TrainConfig
from student_trainer.student.model import Student
from student_trainer.tasks.judgement import FAILURES, Judgement, failures, told
from student_trainer.verification.rewards import reward_metrics, with_advantages
from student_trainer.verification.verifiers import Verifiers, waited

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Judged:
    """A response of a task.

    Attributes:
        task: its name.
        length: tokens.
        finished: whether it ended by itself.
        judgement: None where it is not judged.
        loss: sum of the losses of its rows, nats, before any weight.
        rows: how many of its rows have a loss by themselves.
    """

    task: str
    length: int
    finished: bool
    judgement: Judgement | None
    loss: float = 0.0
    rows: int = 0


class StepVerification:
    """Judges the responses of each step of a run that has tasks."""

    def __init__(
        self,
        tasks: Sequence[str],
        verifiers: Verifiers | None,
        student: Student,
        world: World,
        stopped: Callable[[], bool],
        config: TrainConfig,
    ) -> None:
        """
        Args:
            tasks: names of the run's tasks; none where it has none.
            verifiers: None where the responses of steps are not judged.
            stopped: whether a signal ends the run, so that nothing more is waited for.
        """
        self._tasks = tasks
        self._verifiers = verifiers
        self._student = student
        self._world = world
        self._stopped = stopped
        self._reward, self._steps = config.reward, config.run.steps
        self._size = config.rollout.group_size
        # Seconds of the wait before the update.
        self._waited = 0.0

    def begin(self, rollouts: Sequence[Rollout]) -> list[Future[Judgement] | None]:
        """Sends the responses to be judged."""
        if self._verifiers is None:
            return [None] * len(rollouts)
        return self._verifiers.submit_rollouts(self._student, rollouts)

    def rewarded(
        self, step: int, begun: Sequence[Future[Judgement] | None], parts: Sequence[Rollout]
    ) -> Sequence[Rollout]:
        """The parts of the step's responses with the advantages that the step learns from; waits
        for the judgements.

        Args:
            begun: what ``begin`` returned.
            parts: of this rank, by group.
        """
        start = time.perf_counter()
        found = waited(begun, lambda: False)
        self._waited = time.perf_counter() - start
        weight = self._reward.weight_at(step, self._steps)
        return with_advantages(parts, found, self._reward, weight=weight, size=self._size)

    def metrics(
        self,
        step: int,
        begun: Sequence[Future[Judgement] | None],
        rollouts: Sequence[Rollout],
        places: Sequence[int],
        losses: Sequence[Float32],
    ) -> dict[str, Any]:
        """Waits for the judgements; returns what the metrics of the step say of its tasks, on all
        ranks together. A signal ends the wait. Responses that could not be judged are logged.

        Args:
            begun: what ``begin`` returned.
            rollouts: those of this rank.
            places: of these, among all of the step.
            losses: float32 [n] of each, nats, of its rows; NaN of a row without a loss by itself.
        """
        if not self._tasks:
            return {}
        start = time.perf_counter()
        found = waited(begun, self._stopped)
        seconds = time.perf_counter() - start + self._waited
        mine = [
            (place, asdict(_of_response(rollout, judgement, rows)))
            for place, rollout, judgement, rows in zip(places, rollouts, found, losses, strict=True)
        ]
        every = [one for of_rank in self._world.gather(mine) for one in of_rank]
        judged = [_judged(one) for _, one in sorted(every, key=lambda entry: int(entry[0]))]
        if self._world.writes:
            for line in failures_by_task(self._tasks, judged):
                log.warning("step %d: %s", step, line)
        waits = {"verification_wait_seconds": seconds} if self._verifiers is not None else {}
        learnt = {}
        if self._reward.learns:
            learnt = reward_metrics(
                [one.judgement for one in judged],
                self._reward,
                weight=self._reward.weight_at(step, self._steps),
                size=self._size,
            )
        return {**task_metrics(self._tasks, judged), **learnt, **waits}


def failures_by_task(tasks: Sequence[str], judged: Sequence[Judged]) -> list[str]:
    """A line for each task and kind of failure that there was."""
    return [
        f"task {task}: {line}"
        for task in tasks
        for line in told(
            one.judgement for one in judged if one.task == task and one.judgement is not None
        )
    ]


def task_metrics(tasks: Sequence[str], judged: Sequence[Judged]) -> dict[str, Any]:
    """Metrics of responses, of each task by itself. A share of right responses is of all that
    judging began with; a mean score, and that of a further value, is of those that have one."""
    found: dict[str, Any] = {}
    for task in tasks:
        own = [one for one in judged if one.task == task]
        found[f"task_responses/{task}"] = len(own)
        found[f"task_length_mean/{task}"] = _mean([one.length for one in own])
        found[f"task_truncated_share/{task}"] = _mean([not one.finished for one in own])
        rows = sum(one.rows for one in own)
        found[f"task_loss/{task}"] = sum(one.loss for one in own) / rows if rows else None
        judgements = [one.judgement for one in own if one.judgement is not None]
        if not judgements:
            continue
        found[f"task_right_share/{task}"] = _mean([one.right for one in judgements if one.begun])
        scores = [one.score for one in judgements if one.score is not None]
        found[f"task_score/{task}"] = _mean(scores)
        for name in sorted({name for one in judgements for name in one.values}):
            values = [one.values[name] for one in judgements if name in one.values]
            found[f"task_value_{name}/{task}"] = _mean(values)
    every = [one.judgement for one in judged if one.judgement is not None]
    if every:
        counts = failures(every)
        found["failed_verifications"] = sum(counts.values())
        found |= {f"failed_verifications_{kind}": counts.get(kind, 0) for kind in FAILURES}
    return found


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


def _of_response(rollout: Rollout, judgement: Judgement | None, losses: Float32) -> Judged:
    known = losses[~np.isnan(losses)].astype(np.float64)
    return Judged(
        rollout.prompt.task,
        rollout.own_length,
        rollout.finished,
        judgement,
        float(known.sum()),
        len(known),
    )


def _judged(told: Mapping[str, Any]) -> Judged:
    judgement = told["judgement"]
    return Judged(**{**told, "judgement": None if judgement is None else Judgement(**judgement)})
