"""Findings in the tasks of a run."""

from __future__ import annotations

from student_trainer.report.findings.course import Course, Finding
from student_trainer.verification.judgement import FAILURES

PREFIX = "failed_verifications"


def failed_verifications(run: Course) -> Finding | None:
    """Responses that could not be judged, and so are not right."""
    rows = run.metrics[-run.window :]
    failed = {kind: sum(int(row.get(f"{PREFIX}_{kind}") or 0) for row in rows) for kind in FAILURES}
    count = sum(failed.values())
    judged = sum(
        int(value or 0)
        for row in rows
        for key, value in row.items()
        if key.startswith("task_responses/") and f"task_right_share/{key.partition('/')[2]}" in row
    )
    if not judged or count < judged * run.limits.unjudged:
        return None
    kinds = ", ".join(f"{number} {kind}" for kind, number in failed.items() if number)
    return Finding(
        "warning",
        "Responses cannot be judged, and count as not right",
        PREFIX,
        f"{count} of the {judged} recent responses ({kinds})",
        "verification.seconds",
        "docs/tasks.md says what each kind means: allow more time or memory, or mend the verifier.",
    )
