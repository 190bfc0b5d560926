"""What a run tells its callbacks, in order and in the trainer's own thread.

    RunStarted, EvaluationEnded "before",
    for each step: RolloutsWritten, ScoresArrived, StepEnded, CheckpointSaved,
    EvaluationEnded "after", RunEnded

With ``evaluation.every`` an EvaluationEnded "during" follows the StepEnded of its step.

A callback is called with every event, and asks for its class:

    def tell(event: Event) -> None:
        if isinstance(event, StepEnded):
            print(event.step, event.metrics["loss"])

Of a run with several ranks, rank 0 tells its own callbacks: rollouts and scores are those of its
share of the step, and everything else is of the whole run. The other ranks wait for a callback.

The arrays of an event are those that the run goes on with: read them, and do not change them.
What a callback draws from torch's generators changes nothing in the run.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from teacher_proto.errors import ConfigurationError, LsmError, first_line
from teacher_proto.types import ContinuationScores

from student_trainer.evaluation import Evaluation
from student_trainer.rollout.base import Rollout
from student_trainer.run.rng import CPU, capture_rng, restore_rng
from student_trainer.settings.train import TrainConfig


@dataclass(frozen=True)
class RunResult:
    """What is left of a finished run.

    Attributes:
        path: its directory.
        summary: ``summary.json`` (docs/reference/student-trainer-metrics.md).
    """

    path: Path
    summary: Mapping[str, Any]


@dataclass(frozen=True)
class RunStarted:
    """Everything is in order, and nothing is written or drawn yet.

    Attributes:
        path: the run's directory.
        step: completed steps; above 0 where the run resumes.
    """

    path: Path
    config: TrainConfig
    step: int


@dataclass(frozen=True)
class RolloutsWritten:
    """A batch is written, and is being scored. It is told once, by the process that wrote it.

    Attributes:
        step: the step that updates on it.
        written_after: completed steps of the student that wrote it.
        rollouts: by group: the student's responses to one prompt, or answers of the data. With
            several ranks those of rank 0's share of the step.
    """

    step: int
    written_after: int
    rollouts: Sequence[Rollout]


@dataclass(frozen=True)
class ScoresArrived:
    """The scores of a step's rollouts, told once the step is complete.

    Attributes:
        rollouts: as far as they are scored (``scoring``); with several ranks those of rank 0's
            share of the step.
        scores: one for each of ``rollouts``, in their order.
    """

    step: int
    rollouts: Sequence[Rollout]
    scores: Sequence[ContinuationScores]


@dataclass(frozen=True)
class StepEnded:
    """A step is complete, and its line of metrics written.

    Attributes:
        metrics: the line of ``metrics.jsonl``.
    """

    step: int
    metrics: Mapping[str, Any]


@dataclass(frozen=True)
class CheckpointSaved:
    """A checkpoint is written whole, after this many steps."""

    step: int
    path: Path


@dataclass(frozen=True)
class EvaluationEnded:
    """The student was evaluated on the held-out prompts; not told of an evaluation that a
    resumed run found.

    Attributes:
        when: before the first step, during the run, or after the last step.
        evaluation: values, lengths and samples.
        path: the file that holds it.
        step: completed steps of the student.
    """

    when: Literal["before", "during", "after"]
    evaluation: Evaluation
    path: Path
    step: int


@dataclass(frozen=True)
class RunEnded:
    """Everything that the run leaves is written."""

    result: RunResult


Event = (
    RunStarted
    | RolloutsWritten
    | ScoresArrived
    | StepEnded
    | CheckpointSaved
    | EvaluationEnded
    | RunEnded
)
Callback = Callable[[Event], None]


class CallbackError(LsmError):
    """A callback raised; the error's cause is what it raised."""

    default_reason = "CALLBACK"


class Events:
    """Tells callbacks what happens, each of them in the order in which they were given.

    Args:
        device: of the student, whose generator is left as it is.
    """

    def __init__(self, callbacks: Sequence[Callback] = (), device: torch.device = CPU) -> None:
        self.callbacks = tuple(callbacks)
        self._device = device

    def __bool__(self) -> bool:
        """Whether anybody listens."""
        return bool(self.callbacks)

    def tell(self, event: Event) -> None:
        """Calls every callback.

        Raises:
            CallbackError: one raised. Those after it are not called.
        """
        if not self.callbacks:
            return
        before = capture_rng(self._device)
        try:
            for callback in self.callbacks:
                try:
                    callback(event)
                except Exception as error:
                    raise CallbackError(
                        f"the callback {name_of(callback)} raised {type(error).__name__} at "
                        f"{type(event).__name__}: {first_line(error)}",
                        where=_place(event),
                        fix="mend the callback, then start again: the run resumes after its last "
                        "complete step",
                    ) from error
        finally:
            restore_rng(before, self._device)


def check_callbacks(callbacks: Iterable[Callback]) -> tuple[Callback, ...]:
    """The callbacks, each of which can be called. Raises ConfigurationError."""
    if callable(callbacks) or not isinstance(callbacks, Iterable):
        what = name_of(callbacks) if callable(callbacks) else f"a {type(callbacks).__name__}"
        raise ConfigurationError(f"{what} is no list", where="callbacks", fix="give [callback]")
    found = tuple(callbacks)
    for index, callback in enumerate(found):
        if not callable(callback):
            raise ConfigurationError(
                f"a {type(callback).__name__} cannot be called",
                where=f"callbacks[{index}]",
                fix="give a function, or an object with __call__, that takes an event",
            )
        if any(map(inspect.iscoroutinefunction, (callback, type(callback).__call__))):
            raise ConfigurationError(
                f"{name_of(callback)} is a coroutine, and nothing would await it",
                where=f"callbacks[{index}]",
                fix="give a plain function: write `def` in place of `async def`",
            )
    return found


def name_of(callback: Callback) -> str:
    """A callback's module and name; of an object, of its class."""
    named = callback if hasattr(callback, "__qualname__") else type(callback)
    return f"{named.__module__}.{named.__qualname__}"


def _place(event: Event) -> str:
    return f"step {event.step}" if hasattr(event, "step") else ""
