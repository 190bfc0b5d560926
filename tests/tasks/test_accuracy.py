"""pass@k and its intervals, against enumeration; results of tasks in files, curves and pages."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError

from student_trainer.evaluation import Evaluation, load_evaluation, save_evaluation
from student_trainer.evaluation.accuracy import judged_prompts, pass_at, task_result
from student_trainer.evaluation.course.uncertainty import change, interval, verdict
from student_trainer.evaluation.course.values import curve_values
from student_trainer.evaluation.results import TaskResult
from student_trainer.settings.evaluation import EvaluationSettings
from student_trainer.tasks.judgement import Judgement, failed, told
from student_trainer.verification.step import Judged, failures_by_task, task_metrics
from tests.tasks.tools import of_task, response_to

RIGHT, WRONG = Judgement(1.0), Judgement(0.0)


def settings(**values: object) -> EvaluationSettings:
    return EvaluationSettings.model_validate(values)


@pytest.mark.parametrize("n", [1, 2, 4, 7])
def test_pass_at_k_is_the_share_of_subsets_with_a_right_response(n: int) -> None:
    for right, k in itertools.product(range(n + 1), range(1, n + 1)):
        draws = list(itertools.combinations(range(n), k))
        expected = sum(min(draw) < right for draw in draws) / len(draws)
        assert pass_at(k, n, right) == pytest.approx(expected, abs=1e-12)


def result(judged: Sequence[Judgement], each: int, **values: object) -> TaskResult:
    responses = [
        response_to(of_task("t", {}, f"p{place // each}"), place % each, place + 1)
        for place in range(len(judged))
    ]
    return task_result(responses, judged, settings(task_responses=each, **values))


def evaluation(found: TaskResult) -> Evaluation:
    return Evaluation(0, None, None, None, (), "", None, 1.0, tasks={"t": found})


def test_a_result_holds_scores_failures_lengths_and_values() -> None:
    half = Judgement(0.5, values={"steps": 0.25})
    found = result([RIGHT, half, failed("time", "slow"), WRONG], 2, pass_at=[2])
    assert found.pass_at == {"pass_at_1": 0.25, "pass_at_2": 0.5}
    assert found.score == 0.5, "of the three that have one"
    assert (found.failures, found.values) == ({"time": 1}, {"steps": 0.25})
    assert (found.prompts, found.lengths.mean, found.lengths.truncated_share) == (2, 2.5, 0.0)
    assert curve_values(evaluation(found)) == {
        "fresh_rows": 0.0,
        "pass_at_1/t": 0.25,
        "pass_at_2/t": 0.5,
        "task_score/t": 0.5,
        "task_value_steps/t": 0.25,
        "task_rollout_length/t": 2.5,
        "task_truncated_share/t": 0.0,
        "task_failed_verifications/t": 1.0,
    }


def test_a_result_is_written_and_read_again(tmp_path: Path) -> None:
    before = evaluation(result([RIGHT, failed("memory", "much"), WRONG, WRONG], 2))
    save_evaluation(before, tmp_path / "evaluation.json")
    assert load_evaluation(tmp_path / "evaluation.json") == before


def test_an_interval_is_a_bootstrap_over_prompts() -> None:
    shares = np.random.default_rng(3).integers(0, 5, 40)
    judged = [RIGHT if n < share else WRONG for share in shares for n in range(4)]
    found = interval(evaluation(result(judged, 4)), "pass_at_1/t")
    assert found is not None
    # A reference with other draws.
    draws = np.random.default_rng(9).choice(shares / 4, (20_000, 40)).mean(1)
    assert (found.low, found.high) == pytest.approx(np.quantile(draws, [0.025, 0.975]), abs=0.02)


@pytest.mark.parametrize("count", [2, 20])
def test_where_all_are_right_or_wrong_the_interval_is_the_exact_one(count: int) -> None:
    right = interval(evaluation(result([RIGHT] * count, 1)), "pass_at_1/t")
    wrong = interval(evaluation(result([WRONG] * count, 1)), "pass_at_1/t")
    assert right is not None
    assert wrong is not None
    # At the edge so many right ones in a row have a probability of 2.5%.
    assert math.isclose(right.low**count, 0.025)
    assert math.isclose((1 - wrong.high) ** count, 0.025)
    assert (right.high, wrong.low) == (1, 0)


def test_a_change_is_paired_by_prompts() -> None:
    before, after = ([RIGHT, WRONG] * 20, [RIGHT, RIGHT] * 15 + [RIGHT, WRONG] * 5)
    pair = evaluation(result(before, 2)), evaluation(result(after, 2))
    moved = change(*pair, "pass_at_1/t")
    assert moved is not None
    assert 0 < moved.low < 0.375 < moved.high < 0.5
    assert verdict(*pair, "pass_at_1/t", 1) == "better"
    assert change(*pair, "pass_at_1/another") is None


@pytest.mark.parametrize(("count", "said"), [(2, "unclear"), (5, "unclear"), (6, "better")])
def test_a_few_prompts_that_change_alike_say_nothing(count: int, said: str) -> None:
    whole = [evaluation(result([one] * count, 1)) for one in (WRONG, RIGHT)]
    a_part = [whole[0], evaluation(result([RIGHT, WRONG, WRONG, WRONG] * count, 4))]
    for pair in (whole, a_part):
        assert verdict(pair[0], pair[1], "pass_at_1/t", 1) == said
        assert (change(pair[0], pair[1], "pass_at_1/t") is None) == (said == "unclear")
    assert interval(a_part[1], "pass_at_1/t") is None
    assert verdict(whole[1], whole[1], "pass_at_1/t", 1) == "unclear"


def test_a_prompt_that_is_held_out_twice_is_asked_once() -> None:
    prompts = [of_task("t", {}, name) for name in "abacd"]
    held_out = [prompts[0], of_task("u", {}, "x"), *prompts[1:]]
    chosen = judged_prompts(held_out, "t", settings(task_prompts=3))
    assert [prompt.prompt_id for prompt in chosen] == ["a", "b", "c"]
    assert judged_prompts(held_out, "t", settings(task_prompts=0)) == []


def test_more_than_there_are_responses_cannot_be_asked_for() -> None:
    assert settings().pass_sizes == (1, 4)
    assert settings(task_responses=1).pass_sizes == (1,)
    assert settings(task_responses=8, pass_at=[8, 2, 2]).pass_sizes == (1, 2, 8)
    with pytest.raises(ValidationError, match="asks for pass@5, and task_responses draws 4"):
        settings(pass_at=[5])


def test_the_metrics_of_a_step_are_of_each_task_by_itself() -> None:
    judged = [
        Judged("sums", 4, True, RIGHT, 3.0, 3),
        Judged("sums", 6, False, failed("raised", "no"), 4.0, 1),
        Judged("sums", 2, True, Judgement(0.5, values={"steps": 0.5})),
        Judged("chat", 8, False, None),
    ]
    found = task_metrics(["sums", "chat", "other"], judged)
    assert {key: value for key, value in found.items() if not key.startswith("failed_")} == {
        "task_responses/sums": 3,
        "task_length_mean/sums": 4.0,
        "task_truncated_share/sums": pytest.approx(1 / 3),
        "task_loss/sums": 1.75,
        "task_right_share/sums": pytest.approx(1 / 3),
        "task_score/sums": 0.75,
        "task_value_steps/sums": 0.5,
        "task_responses/chat": 1,
        "task_length_mean/chat": 8.0,
        "task_truncated_share/chat": 1.0,
        "task_loss/chat": None,
        "task_responses/other": 0,
        "task_length_mean/other": None,
        "task_truncated_share/other": None,
        "task_loss/other": None,
    }
    assert (found["failed_verifications"], found["failed_verifications_raised"]) == (1, 1)
    assert found["failed_verifications_time"] == 0
    assert task_metrics(["chat"], judged[3:]).keys() & {"failed_verifications"} == set()


def test_responses_that_judging_did_not_begin_with_are_counted_and_in_no_share() -> None:
    judged = [
        Judged("sums", 4, True, one)
        for one in (RIGHT, WRONG, failed("time", ""), failed("start", ""), failed("stopped", ""))
    ]
    found = task_metrics(["sums"], judged)
    assert found["task_right_share/sums"] == pytest.approx(1 / 3)
    assert found["failed_verifications"] == 3
    assert task_metrics(["sums"], judged[3:])["task_right_share/sums"] is None


def test_each_kind_of_failure_is_told_with_the_reason_of_the_first() -> None:
    judged = [
        failed("raised", "KeyError: 'answer'"),
        RIGHT,
        failed("time", "slow"),
        failed("raised", "another"),
        failed("unjudged", "a\x1b[2J\nresponse"),
    ]
    assert told(judged) == [
        "1 of 5 responses cannot be judged (time), the first because 'slow'",
        "2 of 5 responses cannot be judged (raised), the first because \"KeyError: 'answer'\"",
        "1 of 5 responses cannot be judged (unjudged), the first because 'a\\x1b[2J\\nresponse'",
    ]
    assert told([RIGHT]) == []
    of_step = [
        Judged("a", 1, True, judged[0]),
        Judged("b", 1, True, RIGHT),
        Judged("c", 1, True, None),
    ]
    (line,) = failures_by_task(["a", "b", "c"], of_step)
    assert line.startswith("task a: 1 of 1 responses")
