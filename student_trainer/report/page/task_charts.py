"""The charts of a run's tasks: how often the student is right."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from student_trainer.evaluation.course.points import Point
from student_trainer.evaluation.course.values import PASS_AT
from student_trainer.report.page.charts import Curve, Panel
from student_trainer.report.page.curves import Lines, held_out_curve, named, step_series

TASKS_NOTE = (
    "Share of right answers to held-out prompts: pass@1 is that of one answer, pass@k that of at "
    "least one of k. Bars are 95% of a bootstrap over prompts. An answer that could not be judged "
    "is not right."
)
STEPS_NOTE = "Share of right answers among the responses of each step."
RIGHT = "task_right_share/"


def of_tasks(runs: Mapping[str, Sequence[Point]]) -> list[Panel]:
    """A panel for each task, and with several runs for each k too."""
    tasks = dict.fromkeys(
        name for points in runs.values() for point in points for name in point.evaluation.tasks
    )
    return [panel for task in tasks for panel in _of_task(runs, task)]


def _of_task(runs: Mapping[str, Sequence[Point]], task: str) -> Iterator[Panel]:
    found = [
        one
        for points in runs.values()
        for point in points
        if (one := point.evaluation.tasks.get(task))
    ]
    keys = sorted({key for one in found for key in one.by_prompt.sums}, key=_size)
    if len(runs) == 1:
        (points,) = runs.values()
        every = [held_out_curve(f"pass@{_size(key)}", f"{key}/{task}", points) for key in keys]
        yield Panel(f"right answers ({task})", every, share=True, points=True)
        return
    for key in keys:
        curves = [held_out_curve(run, f"{key}/{task}", points) for run, points in runs.items()]
        yield Panel(f"pass@{_size(key)} ({task})", curves, share=True, points=True)


def _size(key: str) -> int:
    return int(key.removeprefix(PASS_AT))


def of_task_steps(runs: Mapping[str, Lines]) -> list[Panel]:
    """A panel of all tasks, and with several runs one for each."""
    keys = dict.fromkeys(
        key for lines in runs.values() for row in lines for key in row if key.startswith(RIGHT)
    )
    curves = {
        key: [
            Curve(named(run, key.removeprefix(RIGHT)), *step_series(lines, key))
            for run, lines in runs.items()
        ]
        for key in keys
    }
    if len(runs) > 1:
        return [
            Panel(f"right answers ({key.removeprefix(RIGHT)})", of_key, share=True)
            for key, of_key in curves.items()
        ]
    every = [curve for of_key in curves.values() for curve in of_key]
    return [Panel("right answers", every, share=True)]
