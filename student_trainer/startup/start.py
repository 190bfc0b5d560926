"""The start of a run: what its steps find, what a step is, and how ``train`` makes them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Literal

from teacher_proto.types import TeacherInfo

from student_trainer.data import PromptSets
from student_trainer.distributed.world import ALONE, World
from student_trainer.evaluation import evaluated_prompts
from student_trainer.rollout.engine import RolloutEngine
from student_trainer.rollout.turns.acting import Acting
from student_trainer.run.checkpoint import TrainState
from student_trainer.run.directory import RunDirectory
from student_trainer.settings.train import TrainConfig
from student_trainer.student.model import Student
from student_trainer.teacher.teachers import Teachers
from student_trainer.verification.verifiers import Verifiers

log = logging.getLogger(__name__)


@dataclass
class Start:
    """What the steps of a start have found so far; a context manager.

    A step sets what it finds, for the steps that need it. What no step has found yet is
    missing: a step names those that it builds on in ``Step.needs``.

    Attributes:
        config: the settings.
        holds_lock: whether the caller holds the lock of the run's directory.
        world: the ranks of the run.
        run: the run's directory.
        checkpoint: the checkpoint that the run resumes from, or None.
        resumed: its state, or None.
        now: the run's clock, local date and time in ISO 8601 without a zone: what chat
            templates print. It is that of the first start, also when the run resumes; empty
            until the prompts are read of a run that begins.
        infos: the teachers by name, as their services describe them.
        prompts: the prompts, as the student reads them.
        student: the student, with the checkpoint's weights where there is one.
        engine: what writes the student's responses; closed with the start.
        teachers: the links to the teachers; closed with the start.
        verifiers: what judges responses; None where no task does. Closed with the start.
        acting: what plays episodes; None where no task acts.
        warnings: what a step found that is no error. The caller takes them from here.
    """

    config: TrainConfig
    holds_lock: bool = False
    world: World = ALONE
    run: RunDirectory = field(init=False)
    now: str = ""
    checkpoint: Path | None = None
    resumed: TrainState | None = None
    infos: dict[str, TeacherInfo] = field(init=False)
    prompts: PromptSets = field(init=False)
    student: Student = field(init=False)
    engine: RolloutEngine = field(init=False)
    teachers: Teachers = field(init=False)
    verifiers: Verifiers | None = None
    acting: Acting | None = None
    warnings: list[str] = field(default_factory=list)
    stack: ExitStack = field(default_factory=ExitStack)

    def __post_init__(self) -> None:
        self.run = RunDirectory(self.config.run.output_dir)

    def __enter__(self) -> Start:
        return self

    def __exit__(self, *exception: object) -> None:
        self.stack.close()

    def warn(self, sentence: str) -> None:
        """Keeps a warning: ``train`` logs it, ``doctor`` adds it to the step's finding."""
        self.warnings.append(sentence)

    def take_warnings(self) -> list[str]:
        """The warnings since the last call, which forgets them."""
        taken, self.warnings = self.warnings, []
        return taken

    def about(self, teacher: str, sentence: str) -> str:
        """A sentence about one of the teachers; its name goes first where there are several."""
        return sentence if self.config.teachers is None else f"{teacher}: {sentence}"

    @property
    def evaluates(self) -> bool:
        """Whether there are prompts to evaluate on. While the prompts are not known, the
        settings decide."""
        prompts = getattr(self, "prompts", None)
        settings = self.config.evaluation
        if prompts is None:
            return settings.prompts != 0
        return bool(evaluated_prompts(prompts.held_out, settings))


@dataclass(frozen=True)
class Step:
    """One thing that has to be in order before the first step of a run.

    Attributes:
        name: unique, in words.
        check: says in one sentence what it found. It raises LsmError when the run cannot
            start so, warns with ``Start.warn``, and writes nothing. It draws nothing from
            torch's generators, unless it sets them first: a resumed run repeats an
            uninterrupted one exactly.
        needs: names of earlier steps that it builds on.
        reads: the farthest that it looks: at this machine (``machine``), at the data and
            the student's files, which may be on the hub (``inputs``), at the teacher's
            service (``teacher``), or at the student's weights (``model``). A dry run makes
            the steps of the first two kinds alone.
        meets: whether it meets the other ranks itself (startup/ranks.py). In any other step no
            rank waits for another.
    """

    name: str
    check: Callable[[Start], str]
    needs: tuple[str, ...] = ()
    reads: Literal["machine", "inputs", "teacher", "model"] = "teacher"
    meets: bool = False


def make(
    steps: Sequence[Step], start: Start, begins: Callable[[str], None] = lambda name: None
) -> None:
    """Makes every step in order, and logs what they find. Of the ranks of a run, those after the
    first log the warnings that only they have.

    Args:
        begins: called with the name of each step before it is made.

    Raises:
        LsmError: that of the first step that fails; where it has failed on another rank,
            RankError.
    """
    world = start.world
    for step in steps:
        begins(step.name)
        check = partial(step.check, start)
        found = check() if step.meets else world.each(check)
        log.info("%s: %s", step.name, found)
        warnings = start.take_warnings()
        known = world.from_first(warnings)
        for warning in warnings:
            if world.writes or warning not in known:
                log.warning("%s", warning)
