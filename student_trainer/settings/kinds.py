"""The sections that come in kinds, ``loss``, the list ``weights`` and ``[tasks.NAME]``: the key
``kind`` names a loss of ``student_trainer.losses.LOSSES``, a row weight of
``student_trainer.weights.WEIGHTS`` or a task of ``student_trainer.tasks.TASKS``, or a class of a
user's own, ``package.module:Name``."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Annotated

from pydantic import SerializeAsAny
from teacher_proto.program.settings_keys import is_secret
from teacher_proto.program.settings_types import Kinds

from student_trainer.losses import LOSSES, Loss
from student_trainer.settings.data import ColumnSettings, DataSettings
from student_trainer.settings.dotted import load_dotted
from student_trainer.settings.teacher import TEACHER_NAME
from student_trainer.tasks import TASKS, Task
from student_trainer.weights import WEIGHTS, RowWeight

DEFAULT_LOSS = "lsm"


def _own_loss(kind: str) -> type[Loss]:
    return load_dotted(kind, Loss, "loss.kind")


def _own_weight(kind: str) -> type[RowWeight]:
    return load_dotted(kind, RowWeight, "weights.kind")


def _own_task(kind: str) -> type[Task]:
    return load_dotted(kind, Task, "tasks.kind")


LossConfig = Annotated[
    SerializeAsAny[Loss], Kinds("loss", named=LOSSES, load=_own_loss, default=DEFAULT_LOSS)
]
WeightConfigs = tuple[
    Annotated[SerializeAsAny[RowWeight], Kinds("weights", named=WEIGHTS, load=_own_weight)], ...
]
TaskConfigs = dict[
    str, Annotated[SerializeAsAny[Task], Kinds("tasks", named=TASKS, load=_own_task)]
]


def check_tasks(tasks: Mapping[str, Task], teachers: Collection[str], data: DataSettings) -> None:
    """Raises ValueError for tasks that do not fit the rest of the settings.

    Args:
        teachers: names of several teachers; none where the run has its only one.
    """
    if not tasks:
        raise ValueError("tasks is empty: name one as [tasks.NAME], or leave it out")
    for name in tasks:
        if not TEACHER_NAME.fullmatch(name):
            raise ValueError(
                f"tasks.{name}: a task's name is lower-case letters and digits, joined by single - "
                "or _"
            )
        if is_secret((name,)):
            raise ValueError(
                f"tasks.{name}: this name would hide the task's settings as secrets; choose another"
            )
    _check_no_files(data)
    if not any(one.weight for one in tasks.values()):
        raise ValueError("every task has weight 0: give those to train on a weight above 0")
    scoring = [one.teacher or data.teacher for one in tasks.values() if one.weight]
    for name, one in tasks.items():
        if not teachers and one.teacher is not None:
            raise ValueError(
                f"tasks.{name}.teacher chooses among several teachers, and there are no "
                "[teachers.NAME]"
            )
        if teachers and one.teacher is not None and one.teacher not in teachers:
            raise ValueError(
                f"tasks.{name}.teacher is {one.teacher!r}, which is none of the teachers "
                f"({', '.join(teachers)})"
            )
        if len(teachers) > 1 and one.teacher is None and data.teacher is None:
            raise ValueError(
                f"several teachers: say which one scores the responses to tasks.{name}, in "
                f"tasks.{name}.teacher or, for all tasks, in data.teacher"
            )
    if len(teachers) > 1:
        idle = [name for name in teachers if name not in scoring]
        if idle:
            raise ValueError(
                f"no task to train on names teachers.{idle[0]}: leave it out, or name it as the "
                "teacher of one"
            )


def _check_no_files(data: DataSettings) -> None:
    """The prompts of tasks take the place of those of files."""
    for key in ("train", "held_out", "subset", "revision"):
        if getattr(data, key) is not None:
            raise ValueError(
                f"data.{key} and tasks exclude each other: give these prompts as a task, such as "
                '[tasks.chat] with kind = "chat"'
            )
    if data.held_out_fraction:
        raise ValueError(
            "data.held_out_fraction is a share of the prompts of data.train; every task has "
            "held-out prompts of its own"
        )
    if data.columns != ColumnSettings():
        raise ValueError(
            "data.columns names columns of data.train; a task has settings of its own for them"
        )
