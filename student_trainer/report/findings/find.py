"""All rules, in the order of the report."""

from __future__ import annotations

from collections.abc import Callable

from student_trainer.report.findings import held_out, steps, tasks
from student_trainer.report.findings.course import Course, Finding

CHECKS: tuple[Callable[[Course], Finding | None], ...] = (
    held_out.held_out_result,
    held_out.past_its_best,
    steps.refused_or_lost,
    steps.loss_rises,
    steps.entropy_collapse,
    steps.support_left,
    steps.narrow_support,
    steps.cut_answers,
    steps.shorter_answers,
    steps.log_prob_gap,
    steps.rows_left_out,
    steps.always_clipped,
    steps.teacher_waits,
    tasks.failed_verifications,
    tasks.failed_held_out,
)
ORDER = ("problem", "warning", "note")


def find(run: Course) -> list[Finding]:
    """What is wrong with a run, the worst first; nothing where nothing stands out."""
    found = [finding for check in CHECKS if (finding := check(run)) is not None]
    return sorted(found, key=lambda one: ORDER.index(one.level))
