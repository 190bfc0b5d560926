"""Findings in the metrics of the steps. Each rule says what it found, or None."""

from __future__ import annotations

from student_trainer.diagnostics import narrow
from student_trainer.diagnostics.leaving import advice, leaving_support
from student_trainer.diagnostics.narrow import NarrowRule
from student_trainer.report.findings.course import Course, Finding

NOT_RENORMALISED = (
    "the loss is not renormalised and depends on the mass outside: raise loss.top_k, so that less "
    "is outside, or lower optimizer.lr"
)


def cut_answers(run: Course) -> Finding | None:
    share = run.recent("truncated_share")
    if share is None or share < run.limits.cut_warning:
        return None
    limit = run.setting("rollout.max_new_tokens")
    return Finding(
        "problem" if share >= run.limits.cut_problem else "warning",
        "Nearly all answers are cut at the length limit"
        if share >= run.limits.cut_problem
        else "Most answers are cut at the length limit",
        "truncated_share",
        f"{share:.0%} of the recent answers, at {limit} tokens",
        "rollout.max_new_tokens",
        "Raise it, or choose prompts with shorter answers: where an answer is cut, nothing "
        "teaches the student to end it, and lengths say nothing.",
    )


def always_clipped(run: Course) -> Finding | None:
    share = run.recent("clipped")
    if share is None or share < run.limits.clipped or not run.long_enough:
        return None
    norm, bound = run.recent("grad_norm"), run.setting("optimizer.clip_norm")
    return Finding(
        "warning",
        "Every step is clipped",
        "clipped, grad_norm",
        f"{share:.0%} of the recent steps; the norm is {norm or 0:.3g}, the bound {bound}",
        "optimizer.clip_norm",
        "The size of a step is then the bound's and not the gradient's: raise the bound to the "
        "usual norm, or keep it and choose optimizer.lr for it.",
    )


def entropy_collapse(run: Course) -> Finding | None:
    early, recent = run.early("student_entropy"), run.recent("student_entropy")
    if early is None or recent is None or not run.long_enough:
        return None
    if recent >= run.limits.entropy or recent >= early * run.limits.entropy_fall:
        return None
    return Finding(
        "problem",
        "The student's entropy has collapsed",
        "student_entropy",
        f"{recent:.2f} nats, after {early:.2f}",
        "optimizer.lr",
        "The student writes nearly the same answer every time: lower the rate, stop earlier, or "
        "raise rollout.temperature so that it goes on seeing other answers.",
    )


def support_left(run: Course) -> Finding | None:
    key = "student_support_mass"
    early, recent = run.early(key), run.recent(key)
    if early is None or recent is None or not run.long_enough:
        return None
    far = early - recent >= run.limits.support_fall
    first, last = run.early("loss"), run.recent("loss")
    falls = first is not None and last is not None and last < first
    if not far and not (run.renormalised and leaving_support(run.metrics, run.limits.leaving)):
        return None
    own_ids = str(run.setting("loss.support")).startswith(("student", "union"))
    mend = advice(own_ids=own_ids) if run.renormalised else NOT_RENORMALISED
    return Finding(
        "problem" if far and falls else "warning",
        "The loss falls while the student leaves the support it is measured on"
        if falls
        else "The student's mass leaves the teacher's support",
        f"{key}, loss" if falls else key,
        f"{recent:.2%} of its mass is there, after {early:.2%}",
        "loss.tail" if run.renormalised else "loss.top_k",
        f"{mend[0].upper()}{mend[1:]}.",
    )


def narrow_support(run: Course) -> Finding | None:
    rule = run.limits.narrow
    found = [
        one
        for one in (narrow.narrow_supports(run.metrics, rule) if run.renormalised else ())
        if not _holds_enough(run.recent(one.metric), rule)
    ]
    if not found:
        return None
    return Finding(
        "warning",
        "The support holds little of the teacher's mass",
        ", ".join(one.metric for one in found),
        "; ".join(map(str, found)),
        ", ".join(narrow.k_settings(run.config, found)),
        f"{narrow.advice(run.config, found)}.",
    )


def _holds_enough(mass: float | None, rule: NarrowRule) -> bool:
    """Whether a support does by now: a run can be resumed with a larger one."""
    return mass is not None and 1 - mass <= rule.outside


def rows_left_out(run: Course) -> Finding | None:
    masked = run.recent_share(["masked_tokens"], "tokens") or 0.0
    unusable = run.recent_share(["unusable_tokens", "dropped_small_support"], "tokens") or 0.0
    by_chunk = run.recent_share(["chunk_tokens"], "tokens") or 0.0
    lost = masked + unusable - by_chunk
    if lost <= run.limits.left_out:
        return None
    by_settings = masked >= unusable
    return Finding(
        "warning",
        "Many rows have no loss",
        "masked_tokens" if by_settings else "unusable_tokens",
        f"{lost:.0%} of the recent tokens: {masked:.0%} masked by the settings, "
        f"{unusable:.0%} without a usable row of the teacher",
        "loss.mask" if by_settings else "loss.masked_chunks",
        "Mask fewer tokens."
        if by_settings
        else "The table of reasons below says why; loss.masked_chunks learns from their chunk, "
        "and a larger loss.top_k makes more rows usable.",
    )


def teacher_waits(run: Course) -> Finding | None:
    share = run.recent("teacher_wait_share")
    if share is None:
        share = run.recent_share(["teacher_wait_seconds"], "step_seconds")
    if share is None or share <= run.limits.wait:
        return None
    strict = not run.setting("pipeline.staleness")
    return Finding(
        "warning",
        "The trainer waits for the teacher",
        "teacher_wait_share",
        f"{share:.0%} of a recent step",
        "pipeline.staleness" if strict else "teacher.max_in_flight",
        "With 1 the teacher scores while the student writes and learns; a second replica of the "
        "teacher does the same for a run that has to stay on-policy."
        if strict
        else "Give the teacher more requests at a time, another replica or a smaller share of "
        "other runs.",
    )


def log_prob_gap(run: Course) -> Finding | None:
    gap = run.recent("rollout_log_prob_gap")
    if gap is None:
        return None
    moved = (run.setting("pipeline.staleness") or 0) > 0 or (
        (run.setting("optimizer.updates_per_batch") or 1) > 1
    )
    if gap <= (run.limits.gap_stale if moved else run.limits.gap_fresh):
        return None
    return Finding(
        "warning" if moved else "problem",
        "The student that learns is far from the one that wrote"
        if moved
        else "Rollouts and updates disagree about the same weights",
        "rollout_log_prob_gap",
        f"{gap:.3f} nats a token",
        "pipeline.staleness" if moved else "student.dtype",
        "Fewer steps between writing and learning (pipeline.staleness, "
        "optimizer.updates_per_batch), or a lower optimizer.lr."
        if moved
        else "The same weights should give the same log-probability: compare dtype, dropout and "
        "the engine that writes.",
    )


def loss_rises(run: Course) -> Finding | None:
    early, recent = run.early("loss"), run.recent("loss")
    if early is None or recent is None or early <= 0 or not run.long_enough:
        return None
    if recent <= early * run.limits.loss_rise:
        return None
    return Finding(
        "problem",
        "The loss rises",
        "loss",
        f"{recent:.3f} nats a token, after {early:.3f}",
        "optimizer.lr",
        "Lower the rate, or warm it up (optimizer.warmup_steps).",
    )


def shorter_answers(run: Course) -> Finding | None:
    early, recent = run.early("response_length_mean"), run.recent("response_length_mean")
    cut = run.early("truncated_share") or 0.0
    if early is None or recent is None or cut >= run.limits.cut_warning or not run.long_enough:
        return None
    if recent >= early * run.limits.shorter:
        return None
    return Finding(
        "warning",
        "Answers have become much shorter",
        "response_length_mean",
        f"{recent:.0f} tokens, after {early:.0f}",
        "loss.mean",
        "A student can lower its loss by saying less: read the samples, and compare the held-out "
        "values on frozen positions, which lengths cannot change.",
    )


def refused_or_lost(run: Course) -> Finding | None:
    empty = sum(int(row.get("empty_updates") or 0) for row in run.metrics)
    wrong = run.recent_share(["dropped_non_finite"], "tokens") or 0.0
    refused = sum(int(row.get("refused_rollouts") or 0) for row in run.metrics)
    per_step = (run.setting("rollout.prompts_per_step") or 0) * (
        run.setting("rollout.group_size") or 0
    )
    made = len(run.metrics) * per_step
    if empty:
        return Finding(
            "problem", "Updates had no usable row", "empty_updates", f"{empty} in all steps",
            "loss.top_k", "See the warnings of the log: each says what was missing.",
        )  # fmt: skip
    if wrong > run.limits.non_finite:
        return Finding(
            "problem", "Rows are not finite", "dropped_non_finite", f"{wrong:.2%} of the tokens",
            "student.dtype", "Look for overflow: bfloat16 in place of float16, a lower rate, or a "
            "teacher that forbids some ids.",
        )  # fmt: skip
    if made and refused / made > run.limits.refused:
        return Finding(
            "warning", "The teacher refuses responses", "refused_rollouts",
            f"{refused} of {made}", "data.over_long",
            "The log says why of the first; most are too long in the teacher's tokens.",
        )  # fmt: skip
    return None
