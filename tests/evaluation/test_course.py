"""The curve of held-out values: its uncertainty, its files, and when a run has no patience left."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from student_trainer.evaluation.course.points import (
    best_point,
    file_of,
    read_points,
    remove_after,
    steps_of,
    without_improvement,
)
from student_trainer.evaluation.course.uncertainty import change, interval, verdict
from student_trainer.evaluation.course.values import curve_values, sums_of
from student_trainer.evaluation.files import load_evaluation, save_evaluation
from student_trainer.evaluation.results import (
    ByPrompt,
    ChunkLikelihood,
    Evaluation,
    FullDivergence,
    RealignedDivergence,
)


def evaluation(*of_prompts: float, rows: int = 8) -> Evaluation:
    """Of a reverse KL for each prompt, each of so many rows."""
    names = tuple(f"p{number}" for number in range(len(of_prompts)))
    sums = ByPrompt(
        names, (rows,) * len(names), {"reverse_kl": tuple(rows * v for v in of_prompts)}
    )
    mean = float(np.mean(of_prompts))
    frozen = FullDivergence(rows * len(names), 0, 320, mean, mean, 0.5, sums)
    return Evaluation(len(names), frozen, None, None, (), "f", None, 1.0)


def test_rows_are_added_up_by_prompt() -> None:
    found = ByPrompt.of(["a", "b", "a"], {"kl": [1.0, 2.0, 4.0]})
    assert found == ByPrompt(("a", "b"), (2.0, 1.0), {"kl": (5.0, 2.0)})
    weighed = ByPrompt.of(["a", "a"], {"bits": [8.0, 4.0]}, [2, 4])
    assert weighed == ByPrompt(("a",), (6.0,), {"bits": (12.0,)})


def test_an_interval_is_about_the_normal_one_and_always_the_same() -> None:
    values = np.random.default_rng(3).normal(1.0, 0.2, 200)
    found = interval(evaluation(*values), "reverse_kl")
    assert found is not None
    half = 1.96 * values.std() / np.sqrt(len(values))
    assert found.low == pytest.approx(values.mean() - half, abs=half / 5)
    assert found.high == pytest.approx(values.mean() + half, abs=half / 5)
    assert found == interval(evaluation(*values), "reverse_kl")


def test_a_change_pairs_the_prompts() -> None:
    """Prompts that differ much, and a change that is the same at each: the pairs show it."""
    hard = np.linspace(0.5, 5.0, 24)
    before, after = evaluation(*hard), evaluation(*(hard - 0.1))
    own = interval(before, "reverse_kl")
    assert own is not None
    assert own.high - own.low > 0.5
    moved = change(before, after, "reverse_kl")
    assert moved is not None
    assert (moved.low, moved.high) == pytest.approx((-0.1, -0.1))
    assert verdict(before, after, "reverse_kl", -1) == "better"
    assert verdict(before, after, "reverse_kl", 1) == "worse"
    assert verdict(before, after, "reverse_kl", 0) == ""


def test_better_is_said_only_where_it_is() -> None:
    before = evaluation(*[1.0] * 12)
    mixed = evaluation(*[0.5, 1.4] * 6)
    assert verdict(before, mixed, "reverse_kl", -1) == "unclear"
    assert verdict(before, evaluation(*[0.5, 0.9] * 6), "reverse_kl", -1) == "better"
    assert verdict(before, evaluation(*[1.1, 1.4] * 6), "reverse_kl", -1) == "worse"
    assert verdict(before, evaluation(0.5), "reverse_kl", -1) == "", "a single prompt in common"
    older = replace(before, frozen=replace(before.frozen, by_prompt=None))
    assert verdict(older, mixed, "reverse_kl", -1) == "", "of before sums were kept"
    assert verdict(before, mixed, "agreement", 1) == "", "not measured by prompt"


def test_prompts_of_one_side_alone_are_left_out() -> None:
    before, after = evaluation(1.0, 1.0, 9.0), evaluation(0.5, 0.75)
    moved = change(before, after, "reverse_kl")
    assert moved is not None
    assert (moved.low, moved.high) == (-0.5, -0.25)


def test_values_and_sums_have_the_names_of_the_summary() -> None:
    sums = ByPrompt(("a", "b"), (1, 1), {"reverse_kl": (1.0, 2.0), "coverage": (0.5, 0.6)})
    bits = ByPrompt(("a", "b"), (4, 4), {"teacher_bits_per_byte": (8.0, 8.0)})
    across = Evaluation(
        2, None, None, None, (), "f", None, 1.0,
        frozen_realigned=RealignedDivergence(2, 0, 1.5, 1, 1, 1, 0.55, 0, by_prompt=sums),
        fresh_realigned=RealignedDivergence(2, 2, 0.5, 1, 1, 1, 0.9, 0, by_prompt=sums),
        likelihood=ChunkLikelihood(2, 8, 1.0, 2.0, bits),
    )  # fmt: skip
    whole = Evaluation(2, None, None, None, (), "f", None, 1.0, by_teacher={"math": across})
    values = curve_values(whole)
    assert values["support_reverse_kl/math"] == 1.5
    assert values["fresh_support_masked_share/math"] == 0.5
    assert values["teacher_bits_per_byte/math"] == 2.0
    assert sums_of(whole, "support_coverage/math") == (sums, "coverage")
    assert sums_of(whole, "fresh_support_reverse_kl/math") == (sums, "reverse_kl")
    assert sums_of(whole, "teacher_bits_per_byte/math") == (bits, "teacher_bits_per_byte")
    assert sums_of(whole, "reverse_kl/math") is None
    assert sums_of(whole, "support_reverse_kl/code") is None


def test_the_curve_is_in_files_that_a_run_can_go_back_before(tmp_path: Path) -> None:
    for step, kl in ((0, 2.0), (20, 1.0), (100, 0.5)):
        save_evaluation(evaluation(kl, kl), file_of(tmp_path, step))
    (tmp_path / "step-x.json").write_text("not one")
    assert load_evaluation(tmp_path / "step-000020.json") == evaluation(1.0, 1.0)
    assert [(p.step, p.value("reverse_kl")) for p in read_points(tmp_path)] == [
        (0, 2.0), (20, 1.0), (100, 0.5),
    ]  # fmt: skip
    remove_after(tmp_path, 20)
    assert steps_of(tmp_path) == [0, 20]
    assert steps_of(tmp_path / "none") == []


def test_the_best_is_the_earliest_among_equals() -> None:
    assert best_point([3.0, 1.0, None, 1.0], "min") == 1
    assert best_point([3.0, 1.0, 3.0], "max") == 0
    assert best_point([None], "min") is None
    assert without_improvement([3.0, 1.0, 1.0, 2.0], "min") == 2
    assert without_improvement([3.0, 2.0, 1.0], "min") == 0
    assert without_improvement([None, None], "min") == 0
