"""Which models the laboratory has, how each is trained, and what each has to reach."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Literal

from student_trainer.study.lab.language.sums import SumsTask
from student_trainer.study.lab.language.task import LabTask
from student_trainer.study.lab.network import Sizes
from student_trainer.study.lab.training import Schedule

TASKS: Mapping[str, LabTask] = {"sums": SumsTask(items=4)}
# A figure of a model -> the least and the most that it may be.
TEACHER_BARS = {"accuracy": (0.9, 1.0), "entropy": (0.3, 1e9), "wide": (0.1, 1.0)}
STUDENT_BARS = {"accuracy": (0.2, 0.5)}


@dataclass(frozen=True)
class Looks:
    """When an early checkpoint is a student: at the first look that finds it right in ``least`` of
    its responses.

    Attributes:
        first, every: updates before the first look, and between looks.
        prompts: of a look.
    """

    first: int
    every: int = 50
    prompts: int = 100
    least: float = 0.3


@dataclass(frozen=True)
class Run:
    """One training, which leaves a teacher at its end or a student on its way.

    Attributes:
        name: of the model.
        task: a name in ``TASKS``.
        looks: None for a teacher.
        measured: prompts on which the model is measured.
    """

    name: str
    task: str
    seed: int
    schedule: Schedule
    looks: Looks | None = None
    sizes: Sizes = field(default_factory=Sizes)
    measured: int = 200

    @property
    def role(self) -> Literal["teacher", "student"]:
        return "teacher" if self.looks is None else "student"


TEACHER = Schedule(steps=3000, items=(1, 19), tokens=1536)
STUDENT = Schedule(steps=1600, items=(1, 6), growth=0.5, tokens=768)


def runs(seed: int, students: int) -> list[Run]:
    """The runs of the laboratory, the longest first.

    Args:
        seed: of the whole laboratory; every run has one of its own.
        students: how many there are besides the teacher.
    """
    base = 1000 * seed
    looks = Looks(first=1000)
    return [
        Run("sums-teacher", "sums", base, TEACHER),
        *(
            Run(f"sums-student-{number}", "sums", base + number, STUDENT, looks)
            for number in range(1, students + 1)
        ),
    ]


def quick(run: Run) -> Run:
    """The same with few steps and no bar to reach: for a look at how it works, and for tests."""
    looks = run.looks and replace(run.looks, first=4, every=4, prompts=4, least=0.0)
    return replace(
        run, schedule=replace(run.schedule, steps=8, tokens=256), looks=looks, measured=8
    )


def digest(run: Run) -> str:
    """Twelve hexadecimal digits of everything that decides a run's model: the run and its task,
    and the files that turn them into a network."""
    decided = {"run": asdict(run), "task": TASKS[run.task].model_dump(mode="json")}
    sha = hashlib.sha256(json.dumps(decided, sort_keys=True).encode())
    for path in sorted(Path(__file__).parent.rglob("*.py")):
        if path.name not in ("command.py", "document.py", "making.py", "recipe.py", "together.py"):
            sha.update(path.read_bytes())
    return sha.hexdigest()[:12]
