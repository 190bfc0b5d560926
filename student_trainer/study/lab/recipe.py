"""Which models the laboratory has, how each is trained, and what each has to reach."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Literal

from student_trainer.study.lab.language.digits import SumsInDigitsTask
from student_trainer.study.lab.language.order import OrderTask
from student_trainer.study.lab.language.sums import SumsTask
from student_trainer.study.lab.language.sums_order import SumsAndOrderTask
from student_trainer.study.lab.language.task import LabTask
from student_trainer.study.lab.network import Sizes
from student_trainer.study.lab.training import Schedule

TASKS: Mapping[str, LabTask] = {
    "sums": SumsTask(items=4),
    "sums-digits": SumsInDigitsTask(items=4),
    "order": OrderTask(items=6),
    "sums-order": SumsAndOrderTask(items=4),
}
# Tasks whose models are made unless the command says which.
MADE = ("sums", "order")
# A task without a teacher of its own -> the tasks whose teachers are its own, too.
TEACHERS_OF: Mapping[str, Sequence[str]] = {
    "sums-digits": ("sums",),
    "sums-order": ("sums", "order"),
}
# A task that is several -> these, on each of which its models are measured.
MEASURED_ON: Mapping[str, Sequence[str]] = {"sums-order": ("sums", "order")}
# Numbers of students that are tried, as a multiple of those that are asked for.
MOST = 3
# A figure of a model -> the least and the most that it may be.
TEACHER_BARS = {"accuracy": (0.9, 1.0), "entropy": (0.3, 1e9), "wide": (0.1, 1.0)}
STUDENT_BARS = {"accuracy": (0.2, 0.5)}


@dataclass(frozen=True)
class Looks:
    """When an early checkpoint is a student: at the first look that finds it right in ``least`` of
    its responses, in each task that it is measured on.

    Attributes:
        first, every: updates before the first look, and between looks.
        prompts: of a look, of each task.
    """

    first: int
    every: int = 50
    prompts: int = 100
    least: float = 0.3

    def find_a_student(self, accuracies: Iterable[float]) -> bool:
        """Whether a look with these shares of right responses, one of each task, does."""
        return all(accuracy >= self.least for accuracy in accuracies)


@dataclass(frozen=True)
class Run:
    """One training, which leaves a teacher at its end or a student on its way.

    Attributes:
        name: of the model.
        task: a name in ``TASKS``.
        looks: None for a teacher.
        measured: prompts of each task on which the model is measured.
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

    @property
    def measured_on(self) -> Sequence[str]:
        """As the function of that name, of the run's task."""
        return measured_on(self.task)

    def figure_of(self, task: str, name: str) -> str:
        """The name of a model's figure on a task: with the task, where there are several."""
        return name if self.measured_on == (self.task,) else f"{task}/{name}"


_SUMS_STUDENT = Schedule(steps=1600, items=(1, 6), growth=0.5, tokens=768)
TEACHERS: Mapping[str, Schedule] = {
    "sums": Schedule(steps=3000, items=(1, 19), tokens=1536),
    "order": Schedule(steps=2000, items=(1, 12), tokens=1536),
}
STUDENTS: Mapping[str, tuple[Schedule, Looks]] = {
    "sums": (_SUMS_STUDENT, Looks(first=1000)),
    "sums-digits": (_SUMS_STUDENT, Looks(first=1000)),
    "order": (Schedule(steps=2000, items=(1, 8), growth=0.4, tokens=768), Looks(first=1200)),
    "sums-order": (Schedule(steps=2000, items=(1, 7), growth=0.4, tokens=1024), Looks(first=1000)),
}


def measured_on(task: str) -> Sequence[str]:
    """The tasks on which models of this one are measured: itself, unless it is several."""
    return MEASURED_ON.get(task, (task,))


def runs(seed: int, students: int, tasks: Sequence[str] = MADE) -> list[Run]:
    """The runs of the laboratory, teachers first, since they take longest.

    Args:
        seed: of the whole laboratory; every run of a task has one of its own.
        students: how many of each task there are besides the teachers; with 0 these are alone.
        tasks: names in ``TASKS``.
    """
    taught = dict.fromkeys(one for task in tasks for one in TEACHERS_OF.get(task, (task,)))
    teachers = [Run(f"{task}-teacher", task, 1000 * seed, TEACHERS[task]) for task in taught]
    return teachers + instead_of((), (), seed, students, tasks)


def instead_of(
    refused: Collection[str],
    tried: Collection[str],
    seed: int,
    students: int,
    tasks: Sequence[str] = MADE,
) -> list[Run]:
    """The students that are still to be made, by the numbers that follow.

    Args:
        refused: names of runs that left no model.
        tried: names of all runs that were made or refused.
        students: how many of each task there shall be.

    Returns:
        As many of each task as ``students`` lacks, but none above ``MOST`` times ``students``.
    """
    found = []
    for task in dict.fromkeys(tasks):
        schedule, looks = STUDENTS[task]
        every = [
            Run(f"{task}-student-{number}", task, 1000 * seed + number, schedule, looks)
            for number in range(1, MOST * students + 1)
        ]
        kept = [run for run in every if run.name in tried and run.name not in refused]
        found += [run for run in every if run.name not in tried][: students - len(kept)]
    return sorted(found, key=lambda run: run.seed)


def quick(run: Run) -> Run:
    """The same with few steps and no bar to reach: for a look at how it works, and for tests."""
    looks = run.looks and replace(run.looks, first=4, every=4, prompts=4, least=0.0)
    return replace(
        run, schedule=replace(run.schedule, steps=8, tokens=256), looks=looks, measured=8
    )


FOLDER = Path(__file__).parent
# Files that no model depends on, and files on which only models of the named tasks do.
_NO_PART = ("command.py", "document.py", "making.py", "recipe.py", "together.py")
_PART_OF: Mapping[str, Sequence[str]] = {
    "order.py": ("order", "sums-order"),
    "digits.py": ("sums-digits",),
    "sums_order.py": ("sums-order",),
}


def digest(run: Run, folder: Path = FOLDER) -> str:
    """Twelve hexadecimal digits of everything that decides a run's model: the run, its task and
    those that it is measured on, and the files in ``folder`` that turn them into a network."""
    decided = {"run": asdict(run), "task": TASKS[run.task].model_dump(mode="json")}
    if run.task in MEASURED_ON:
        decided["measured_on"] = {
            task: TASKS[task].model_dump(mode="json") for task in run.measured_on
        }
    sha = hashlib.sha256(json.dumps(decided, sort_keys=True).encode())
    for path in sorted(folder.rglob("*.py")):
        if path.name not in _NO_PART and run.task in _PART_OF.get(path.name, (run.task,)):
            sha.update(path.read_bytes())
    return sha.hexdigest()[:12]
