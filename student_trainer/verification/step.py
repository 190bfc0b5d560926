"""The judgements of a step's responses, which are made while the step is updated on."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import asdict, dataclass
from typing import Any

from student_trainer.distributed.world import World
from student_trainer.rollout.base import Rollout
from student_trainer.student.model import Student
from student_trainer.verification.judgement import FAILURES, Judgement, failures, told
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
    """

    task: str
    length: int
    finished: bool
    judgement: Judgement | None


class StepVerification:
    """Judges the responses of each step of a run that has tasks."""

    def __init__(
        self,
        tasks: Sequence[str],
        verifiers: Verifiers | None,
        student: Student,
        world: World,
        stopped: Callable[[], bool],
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

    def begin(self, rollouts: Sequence[Rollout]) -> list[Future[Judgement] | None]:
        """Sends the responses to be judged."""
        if self._verifiers is None:
            return [None] * len(rollouts)
        return self._verifiers.submit_rollouts(self._student, rollouts)

    def metrics(
        self,
        step: int,
        begun: Sequence[Future[Judgement] | None],
        rollouts: Sequence[Rollout],
        places: Sequence[int],
    ) -> dict[str, Any]:
        """Waits for the judgements; returns what the metrics of the step say of its tasks, on all
        ranks together. A signal ends the wait. Responses that could not be judged are logged.

        Args:
            begun: what ``begin`` returned.
            rollouts: those of this rank.
            places: of these, among all of the step.
        """
        if not self._tasks:
            return {}
        start = time.perf_counter()
        found = waited(begun, self._stopped)
        seconds = time.perf_counter() - start
        mine = [
            (
                place,
                asdict(Judged(r.prompt.task, len(r.token_ids), r.finished, judgement)),
            )
            for place, r, judgement in zip(places, rollouts, found, strict=True)
        ]
        every = [one for of_rank in self._world.gather(mine) for one in of_rank]
        judged = [_judged(one) for _, one in sorted(every, key=lambda entry: int(entry[0]))]
        if self._world.writes:
            for line in failures_by_task(self._tasks, judged):
                log.warning("step %d: %s", step, line)
        waits = {"verification_wait_seconds": seconds} if self._verifiers is not None else {}
        return {**task_metrics(self._tasks, judged), **waits}


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


def _judged(told: Mapping[str, Any]) -> Judged:
    judgement = told["judgement"]
    return Judged(**{**told, "judgement": None if judgement is None else Judgement(**judgement)})
