"""What is found in made-up runs: the planted problem and nothing else; nothing in a healthy one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from student_trainer.evaluation.course.points import Point
from student_trainer.evaluation.results import (
    ByPrompt,
    Evaluation,
    FullDivergence,
    Lengths,
    TaskResult,
)
from student_trainer.report.collect import read_run
from student_trainer.report.findings import Course, find
from student_trainer.report.verdict import findings

Planted = Callable[[int, dict[str, Any]], None]
STEPS = 40
CONFIG = {
    "rollout": {"max_new_tokens": 256, "prompts_per_step": 9, "group_size": 4},
    "optimizer": {"clip_norm": 1.0, "updates_per_batch": 1},
    "pipeline": {"staleness": 0},
    "loss": {"top_k": 32, "support": "teacher", "tail": "none"},
}


def healthy(step: int) -> dict[str, Any]:
    """A step of a run whose loss falls, slowly and with noise."""
    done, noise = step / STEPS, ((step * 37) % 11 - 5) / 100
    return {
        "step": step,
        "loss": 0.8 - 0.4 * done + noise,
        "tokens": 4000,
        "tokens_used": 3960,
        "masked_tokens": 40,
        "unusable_tokens": 0,
        "chunk_tokens": 0,
        "dropped_small_support": 0,
        "dropped_non_finite": 0,
        "refused_rollouts": 0,
        "empty_updates": 0,
        "response_length_mean": 120 - 20 * done,
        "truncated_share": 0.1,
        "grad_norm": 0.9 + noise,
        "clipped": step % 4 == 0,
        "student_entropy": 1.6 - 0.5 * done,
        "student_support_mass": 0.9 + 0.05 * done,
        "teacher_support_mass": 0.98,
        "rollout_log_prob_gap": 0.01,
        "teacher_wait_share": 0.1,
    }


def course(planted: Planted | None = None, points: Sequence[Point] = ()) -> Course:
    lines = []
    for step in range(1, STEPS + 1):
        line = healthy(step)
        if planted is not None:
            planted(step, line)
        lines.append(line)
    return Course(CONFIG, lines, points)


def set_to(**values: Any) -> Planted:
    return lambda step, line: line.update(values)


def falling(key: str, start: float, end: float) -> Planted:
    return lambda step, line: line.update({key: start + (end - start) * step / STEPS})


def point(step: int, *kls: float) -> Point:
    """An evaluation whose reverse KL of each prompt is given."""
    sums = ByPrompt(
        tuple(f"p{n}" for n in range(len(kls))), (10,) * len(kls),
        {"reverse_kl": tuple(10 * kl for kl in kls)},
    )  # fmt: skip
    mean = sum(kls) / len(kls)
    frozen = FullDivergence(10 * len(kls), 0, 320, mean, mean, 0.5, sums)
    return Point(step, Evaluation(len(kls), frozen, None, None, (), "f", None, 1.0))


BETTER = (point(0, 1.0, 1.2, 1.4, 1.1), point(STEPS, 0.5, 0.6, 0.7, 0.4))


# A problem, and what is to be found of it: level, metric and setting.
PLANTED: tuple[tuple[Planted, str, str, str], ...] = (
    (set_to(truncated_share=1.0), "problem", "truncated_share", "rollout.max_new_tokens"),
    (set_to(truncated_share=0.6), "warning", "truncated_share", "rollout.max_new_tokens"),
    (set_to(clipped=True), "warning", "clipped, grad_norm", "optimizer.clip_norm"),
    (falling("student_entropy", 1.6, 0.1), "problem", "student_entropy", "optimizer.lr"),
    (
        falling("student_support_mass", 0.95, 0.5),
        "problem", "student_support_mass, loss", "loss.tail",
    ),
    (
        falling("student_support_mass", 0.953, 0.939),
        "warning", "student_support_mass, loss", "loss.tail",
    ),
    (set_to(teacher_support_mass=0.67), "warning", "teacher_support_mass", "loss.top_k"),
    (set_to(masked_tokens=600), "warning", "masked_tokens", "loss.mask"),
    (set_to(unusable_tokens=900), "warning", "unusable_tokens", "loss.masked_chunks"),
    (set_to(teacher_wait_share=0.4), "warning", "teacher_wait_share", "pipeline.staleness"),
    (set_to(rollout_log_prob_gap=0.3), "problem", "rollout_log_prob_gap", "student.dtype"),
    (falling("loss", 0.5, 1.5), "problem", "loss", "optimizer.lr"),
    (
        falling("response_length_mean", 120, 20),
        "warning", "response_length_mean", "loss.mean",
    ),
    (set_to(empty_updates=1), "problem", "empty_updates", "loss.top_k"),
    (set_to(dropped_non_finite=40), "problem", "dropped_non_finite", "student.dtype"),
    (set_to(refused_rollouts=3), "warning", "refused_rollouts", "data.over_long"),
    (
        set_to(**{
            "task_responses/sums": 32, "task_right_share/sums": 0.5,
            "failed_verifications_time": 2,
        }),
        "warning", "failed_verifications", "verification.seconds",
    ),
)  # fmt: skip


def test_a_healthy_run_is_left_alone() -> None:
    assert find(course(points=BETTER)) == []
    assert find(course()) == []
    assert find(Course(CONFIG, [healthy(1)])) == [], "one step says nothing"


@pytest.mark.parametrize(("planted", "level", "metric", "setting"), PLANTED)
def test_a_planted_problem_is_found_and_nothing_else(
    planted: Planted, level: str, metric: str, setting: str
) -> None:
    (found,) = find(course(planted, BETTER))
    assert (found.level, found.metric, found.setting) == (level, metric, setting)
    assert found.title
    assert found.value
    assert found.advice.endswith(".")


def test_what_mends_a_support_that_is_left_depends_on_the_loss() -> None:
    little = course(falling("student_support_mass", 0.953, 0.939), BETTER)
    much = course(falling("student_support_mass", 0.95, 0.5), BETTER)
    assert find(replace(little, renormalised=False)) == [], "the loss sees the mass outside"
    (found,) = find(replace(much, renormalised=False))
    assert (found.level, found.setting) == ("problem", "loss.top_k")
    assert "not renormalised" in found.advice
    (found,) = find(replace(much, config={**CONFIG, "loss": {"support": "union"}}))
    assert "loss.tail" in found.advice
    assert "loss.support" not in found.advice


@pytest.mark.parametrize(
    ("loss", "setting"),
    [
        ({"kind": "lsm", "tail": "none", "support": "union"}, "loss.tail"),
        ({"kind": "lsm", "tail": "bucket", "support": "teacher"}, "loss.top_k"),
        ({"kind": "generalised_reverse_kl", "support": "teacher"}, "loss.top_k"),
        ({"kind": "unnormalised_reverse_kl", "tail": "none", "study": True}, "loss.top_k"),
        ({"kind": "mine:Own", "tail": "none", "support": "teacher"}, "loss.tail"),
        ({"kind": "mine:Own", "tail": "bucket", "support": "teacher"}, "loss.top_k"),
    ],
)
def test_the_loss_of_a_run_says_whether_it_is_renormalised(
    run_dir: Path, loss: dict[str, Any], setting: str
) -> None:
    lines = course(falling("student_support_mass", 0.95, 0.5)).metrics
    run = replace(
        read_run(run_dir), config={**CONFIG, "loss": loss}, metrics=[dict(line) for line in lines]
    )
    assert [found.setting for found in findings(run) if found.level == "problem"] == [setting]


def test_the_worst_comes_first() -> None:
    def two(step: int, line: dict[str, Any]) -> None:
        line.update(clipped=True, truncated_share=1.0)

    assert [one.level for one in find(course(two))] == ["problem", "warning"]


@pytest.mark.parametrize(
    ("points", "level", "setting"),
    [
        ([point(0, 1.0, 1.2, 1.1), point(STEPS, 1.5, 1.9, 1.6)], "problem", "optimizer.lr"),
        ([point(0, 1.0, 1.2, 1.1), point(STEPS, 0.7, 1.5, 1.0)], "note", "evaluation.prompts"),
        (
            [point(0, 2.0, 2.2, 2.1), point(20, 0.5, 0.6, 0.7), point(STEPS, 0.9, 1.0, 1.0)],
            "warning",
            "checkpoint.best",
        ),
    ],
)
def test_what_held_out_prompts_say(points: list[Point], level: str, setting: str) -> None:
    (found,) = find(course(points=points))
    assert (found.level, found.metric, found.setting) == (level, "reverse_kl", setting)


def test_a_teacher_that_is_farther_is_found_behind_one_that_nobody_can_judge() -> None:
    def of_both(step: int, first: Point, second: Point) -> Point:
        by_teacher = {"a": first.evaluation, "b": second.evaluation}
        whole = Evaluation(3, None, None, None, (), "f", None, 1.0, by_teacher=by_teacher)
        return Point(step, whole)

    before = of_both(0, point(0, 1.0, 1.2, 1.1), point(0, 1.0, 1.2, 1.1))
    after = of_both(STEPS, point(STEPS, 0.7, 1.5, 1.0), point(STEPS, 1.5, 1.9, 1.6))
    (found,) = find(course(points=[before, after]))
    assert (found.level, found.metric) == ("problem", "reverse_kl/b")


def of_task(one: Point, failures: dict[str, int]) -> Point:
    """An evaluation that also judged 200 responses of a task."""
    by_prompt = ByPrompt(("p0", "p1"), (1, 1), {"pass_at_1": (0.5, 0.5)})
    result = TaskResult(100, 0.5, {}, failures, Lengths(200, 10.0, 0.0), by_prompt)
    return replace(one, evaluation=replace(one.evaluation, tasks={"sums": result}))


def test_held_out_responses_that_cannot_be_judged_are_found_in_the_last_evaluation() -> None:
    before, after = BETTER
    (found,) = find(course(points=[before, of_task(after, {"raised": 3, "time": 1})]))
    assert (found.level, found.metric) == ("warning", "task_failed_verifications")
    assert "4 of the 200 responses" in found.value
    assert "1 time, 3 raised" in found.value
    assert find(course(points=[before, of_task(after, {"raised": 1})])) == [], "less than 1%"
    assert find(course(points=[of_task(before, {"raised": 100}), of_task(after, {})])) == []


def test_refused_responses_are_a_share_of_all_whatever_part_of_them_is_scored() -> None:
    """Of 36 responses a step, 0.36 are 1%."""

    def scored_in_part(step: int, line: dict[str, Any]) -> None:
        line.update(tokens=400, refused_rollouts=step % 4 == 0)

    assert find(course(scored_in_part)) == []


def test_weights_that_moved_may_have_a_wider_gap() -> None:
    stale = Course({**CONFIG, "pipeline": {"staleness": 1}}, [healthy(n) for n in range(1, 41)])
    lines = [{**line, "rollout_log_prob_gap": 0.3} for line in stale.metrics]
    assert find(Course(stale.config, lines)) == []
    lines = [{**line, "rollout_log_prob_gap": 0.7} for line in stale.metrics]
    (found,) = find(Course(stale.config, lines))
    assert (found.level, found.setting) == ("warning", "pipeline.staleness")
