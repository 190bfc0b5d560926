"""What an evaluation measured, by the names that summaries, curves and trackers share."""

from __future__ import annotations

from student_trainer.evaluation.results import (
    OF_FULL_ROWS,
    ByPrompt,
    Evaluation,
    FullDivergence,
    RealignedDivergence,
    TaskResult,
)

FULL = ("reverse_kl", "forward_kl", "agreement")
OF_COARSE_ROWS = ("reverse_kl", "forward_kl", "student_rest", "teacher_rest")
BITS = ("student_bits_per_byte", "teacher_bits_per_byte")
# Begins the names of what is measured of a task; NAME/TASK is the whole name.
PASS_AT = "pass_at_"


def measured(evaluation: Evaluation | None, *, across: bool) -> dict[str, float | None]:
    """The values of one teacher, or of the only one (docs/reference/student-trainer-metrics.md);
    None for what was not measured.

    Args:
        evaluation: None is one in which nothing was measured.
        across: whether the teacher has another tokenizer.
    """
    one = evaluation
    found: dict[str, float | None] = {}
    found |= _full("", one.frozen if one else None)
    found |= _full("fresh_", one.fresh if one else None)
    lengths = one.lengths if one else None
    found["fresh_rows"] = one.fresh.rows if one and one.fresh else 0
    found["rollout_length"] = lengths.mean if lengths else None
    found["truncated_share"] = lengths.truncated_share if lengths else None
    if across:
        found |= _realigned("support", one.frozen_realigned if one else None)
        found |= _realigned("fresh_support", one.fresh_realigned if one else None)
        for name in BITS:
            found[name] = getattr(one.likelihood, name) if one and one.likelihood else None
    return found


def is_across(evaluation: Evaluation | None) -> bool:
    """Whether an evaluation is of a teacher with another tokenizer."""
    return bool(evaluation and (evaluation.frozen_realigned or evaluation.fresh_realigned))


def measured_of_task(found: TaskResult | None) -> dict[str, float | None]:
    """The values of a task; None is one in which nothing was measured."""
    if found is None:
        return {}
    return {
        **found.pass_at,
        "task_score": found.score,
        **{f"task_value_{name}": value for name, value in found.values.items()},
        "task_rollout_length": found.lengths.mean,
        "task_truncated_share": found.lengths.truncated_share,
        "task_failed_verifications": sum(found.failures.values()),
    }


def curve_values(evaluation: Evaluation) -> dict[str, float]:
    """Everything that an evaluation measured; with several teachers ``NAME/TEACHER`` too, and of
    tasks ``NAME/TASK``."""
    every = {"": evaluation, **evaluation.by_teacher}
    of_tasks = {
        f"{name}/{task}": float(value)
        for task, one in evaluation.tasks.items()
        for name, value in measured_of_task(one).items()
        if value is not None
    }
    return of_tasks | {
        f"{name}/{teacher}" if teacher else name: float(value)
        for teacher, one in every.items()
        for name, value in measured(one, across=is_across(one)).items()
        if value is not None
    }


def sums_of(evaluation: Evaluation, key: str) -> tuple[ByPrompt, str] | None:
    """What a value is the mean of, by prompt, and its name there; None where that is not kept.

    Args:
        key: as in ``curve_values``.
    """
    name, _, teacher = key.partition("/")
    if name.startswith(PASS_AT):
        task = evaluation.tasks.get(teacher)
        return (task.by_prompt, name) if task and name in task.by_prompt.sums else None
    one = evaluation.by_teacher.get(teacher) if teacher else evaluation
    if one is None:
        return None
    parts = (
        ("fresh_support_", one.fresh_realigned),
        ("support_", one.frozen_realigned),
        ("fresh_", one.fresh),
        ("", one.likelihood if name in BITS else one.frozen),
    )
    prefix, part = next((prefix, part) for prefix, part in parts if name.startswith(prefix))
    sums = part.by_prompt if part else None
    own = name.removeprefix(prefix)
    return (sums, own) if sums is not None and own in sums.sums else None


def _full(prefix: str, found: FullDivergence | None) -> dict[str, float | None]:
    return {f"{prefix}{name}": getattr(found, name) if found else None for name in FULL}


def _realigned(prefix: str, part: RealignedDivergence | None) -> dict[str, float | None]:
    values = {f"{prefix}_{name}": getattr(part, name) if part else None for name in OF_FULL_ROWS}
    coarse = part.coarse_rows if part else None
    every = part.rows + part.masked_rows + (coarse or 0) if part else 0
    values[f"{prefix}_masked_share"] = part.masked_rows / every if part else None
    values[f"{prefix}_coarse_share"] = None if coarse is None else coarse / every
    for name in OF_COARSE_ROWS:
        of_coarse = getattr(part.coarse, name) if part and part.coarse else None
        values[f"{prefix}_coarse_{name}"] = of_coarse
    values[f"{prefix}_rows"] = part.rows if part else 0
    return values
