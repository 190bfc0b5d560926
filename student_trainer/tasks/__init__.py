"""Tasks: what ``[tasks.NAME]`` of the settings names by its kind, a class and a file each
(docs/tasks.md). ``TASKS`` has them by kind."""

from __future__ import annotations

from student_trainer.tasks.alfworld import AlfWorldTask
from student_trainer.tasks.base import PlacedRow, Read, Row, Split, Task, Verdict
from student_trainer.tasks.chat import ChatTask
from student_trainer.tasks.math import MathTask
from student_trainer.tasks.reasoning import ReasoningTask
from student_trainer.tasks.textworld import TextWorldTask
from student_trainer.tasks.tools import ToolsTask

TASKS: dict[str, type[Task]] = {
    kind.model_fields["kind"].default: kind
    for kind in (MathTask, ReasoningTask, ChatTask, ToolsTask, TextWorldTask, AlfWorldTask)
}

__all__ = ["TASKS", "PlacedRow", "Read", "Row", "Split", "Task", "Verdict"]
