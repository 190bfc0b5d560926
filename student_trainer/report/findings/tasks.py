"""Findings in the tasks of a run."""

from __future__ import annotations

from collections.abc import Mapping

from student_trainer.report.findings.course import Course, Finding
from student_trainer.tasks.judgement import FAILURES, Failure

PREFIX = "failed_verifications"


def failed_verifications(run: Course) -> Finding | None:
    """Responses of recent steps that could not be judged."""
    rows = run.metrics[-run.window :]
    failed = {kind: sum(int(row.get(f"{PREFIX}_{kind}") or 0) for row in rows) for kind in FAILURES}
    judged = sum(
        int(value or 0)
        for row in rows
        for key, value in row.items()
        if key.startswith("task_responses/") and f"task_right_share/{key.partition('/')[2]}" in row
    )
    return _unjudged(run, PREFIX, failed, judged, "recent responses")


def failed_held_out(run: Course) -> Finding | None:
    """The same of the responses to held-out prompts, in the last evaluation."""
    results = run.points[-1].evaluation.tasks.values() if run.points else ()
    failed = {kind: sum(one.failures.get(kind, 0) for one in results) for kind in FAILURES}
    judged = sum(one.lengths.responses for one in results)
    return _unjudged(
        run,
        f"task_{PREFIX}",
        failed,
        judged,
        "responses to held-out prompts of the last evaluation",
    )


def _unjudged(
    run: Course, metric: str, failed: Mapping[Failure, int], judged: int, whose: str
) -> Finding | None:
    count = sum(failed.values())
    if not judged or count < judged * run.limits.unjudged:
        return None
    kinds = ", ".join(f"{number} {kind}" for kind, number in failed.items() if number)
    return Finding(
        "warning",
        "Responses cannot be judged, and are not counted as right",
        metric,
        f"{count} of the {judged} {whose} ({kinds})",
        "verification.seconds",
        "docs/tasks.md says what each kind means, and the log the first reason of each: allow more "
        "time or memory, or mend the verifier.",
    )
