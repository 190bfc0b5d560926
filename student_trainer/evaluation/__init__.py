"""Held-out evaluation that shorter answers cannot improve (docs/training.md).

``frozen`` fixes positions before training, ``evaluate`` measures a student on them and on
its fresh responses, ``results`` has the results and ``files`` writes them.
"""

from student_trainer.evaluation.by_teacher import part_of_teacher, together
from student_trainer.evaluation.evaluate import evaluate
from student_trainer.evaluation.files import (
    load_evaluation,
    load_frozen,
    save_evaluation,
    save_frozen,
)
from student_trainer.evaluation.frozen import (
    evaluated_prompts,
    freeze_continuations,
    frozen_prompts,
)
from student_trainer.evaluation.results import (
    Evaluation,
    FrozenContinuation,
    FrozenPositions,
    FullDivergence,
    Lengths,
    Sample,
    TeacherDescription,
)

__all__ = [
    "Evaluation",
    "FrozenContinuation",
    "FrozenPositions",
    "FullDivergence",
    "Lengths",
    "Sample",
    "TeacherDescription",
    "evaluate",
    "evaluated_prompts",
    "freeze_continuations",
    "frozen_prompts",
    "load_evaluation",
    "load_frozen",
    "part_of_teacher",
    "save_evaluation",
    "save_frozen",
    "together",
]
