"""Findings in the held-out evaluations."""

from __future__ import annotations

from collections.abc import Iterator

from student_trainer.evaluation.course.uncertainty import change, verdict
from student_trainer.evaluation.course.values import curve_values
from student_trainer.report.findings.course import Course, Finding

# Divergences at frozen positions, which no student can choose.
KEYS = ("reverse_kl", "support_reverse_kl")


def held_out_result(run: Course) -> Finding | None:
    """A student that is farther from one of its teachers, or else not measurably closer."""
    if len(run.points) < 2:
        return None
    before, after = run.points[0], run.points[-1]
    unclear = None
    for key in _keys(run):
        found = verdict(before.evaluation, after.evaluation, key, -1)
        moved = change(before.evaluation, after.evaluation, key)
        if found not in ("worse", "unclear") or moved is None:
            continue
        text = f"changed by {moved.low:+.3f} to {moved.high:+.3f} nats (95%)"
        if found == "worse":
            return Finding(
                "problem", "The student is farther from its teacher than before", key, text,
                "optimizer.lr", "Lower the rate, or stop earlier.",
            )  # fmt: skip
        unclear = unclear or Finding(
            "note", "Held-out prompts do not tell whether the student is better", key, text,
            "evaluation.prompts", "Evaluate on more prompts, or train longer.",
        )  # fmt: skip
    return unclear


def past_its_best(run: Course) -> Finding | None:
    """A run that was measurably better at an earlier step."""
    if len(run.points) < 3:
        return None
    last = run.points[-1]
    for key in _keys(run):
        known = [(value, point) for point in run.points if (value := point.value(key)) is not None]
        if len(known) < 3:
            continue
        value, best = min(known, key=lambda entry: (entry[0], entry[1].step))
        if best is last or verdict(best.evaluation, last.evaluation, key, -1) != "worse":
            continue
        return Finding(
            "warning",
            "The student was better earlier",
            key,
            f"{value:.3f} after step {best.step}, {last.value(key):.3f} after step {last.step}",
            "checkpoint.best",
            f'Keep the best (checkpoint.best = "held_out/{key}"), and stop when it is past '
            "(evaluation.patience).",
        )
    return None


def _keys(run: Course) -> Iterator[str]:
    values = curve_values(run.points[0].evaluation)
    return (key for key in values if key.partition("/")[0] in KEYS)
