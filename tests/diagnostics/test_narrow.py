"""When a run is told that its support holds too little of the teacher's mass."""

from __future__ import annotations

from typing import Any

import pytest

from student_trainer.diagnostics.narrow import (
    KEY,
    RULE,
    Narrow,
    NarrowWatch,
    advice,
    narrow_supports,
)


def lines(*masses: float | None, key: str = KEY, **more: Any) -> list[dict[str, Any]]:
    return [{"step": n, key: mass, **more} for n, mass in enumerate(masses, 1)]


def test_it_is_told_with_its_numbers() -> None:
    (found,) = narrow_supports(lines(0.6, 0.7, 0.6, 0.7, 0.65))
    assert (found.teacher, found.steps, found.metric) == ("", 5, "teacher_support_mass")
    assert found.mass == pytest.approx(0.65)
    said = "the support holds 65.0% of the teacher's mass (mean of the first 5 steps)"
    assert str(found) == said


@pytest.mark.parametrize(("held", "told"), [(0.668, True), (0.886, True), (0.943, False)])
def test_what_was_measured_is_on_its_side_of_the_bound(held: float, told: bool) -> None:
    """K = 2 and 8 on worked sums, and the quickstart."""
    assert bool(narrow_supports(lines(*[held] * RULE.steps))) is told


def test_fewer_steps_are_not_judged() -> None:
    assert narrow_supports(lines(*[0.5] * (RULE.steps - 1))) == []


def test_later_steps_are_not_judged() -> None:
    """A student that drifts to where its teacher is unsure has another warning."""
    assert narrow_supports(lines(*[0.99] * RULE.steps, *[0.5] * 50)) == []


def test_steps_without_the_value_do_not_count() -> None:
    without = lines(None, float("nan"), 0.5, None, 0.5, 0.5, 0.5)
    assert narrow_supports(without) == []
    assert len(narrow_supports([*without, *lines(0.5)])) == 1


def test_a_run_is_told_once_at_the_step_that_completes_the_mean() -> None:
    every = lines(*[0.5] * 20)
    watch = NarrowWatch(renormalised=True)
    assert [line["step"] for line in every if watch.add(line)] == [RULE.steps]
    other = NarrowWatch(renormalised=False)
    assert not any(other.add(line) for line in every), "its loss sees the mass outside"


def test_each_of_several_teachers_is_judged_by_its_own_rows() -> None:
    """Their mean, which is in the line too, would be told of both or of none."""
    both = [
        {**one, **other, KEY: 0.8}
        for one, other in zip(
            lines(*[0.6] * RULE.steps, key=f"{KEY}/unsure"),
            lines(*[0.99] * RULE.steps, key=f"{KEY}/sure"),
            strict=True,
        )
    ]
    (found,) = narrow_supports(both)
    assert (found.teacher, found.metric) == ("unsure", "teacher_support_mass/unsure")
    assert "60.0% of the mass of teacher unsure (" in str(found)


def test_a_teacher_with_another_tokenizer_is_not_judged() -> None:
    assert narrow_supports(lines(*[0.6] * RULE.steps, realign_failed_share=0.0)) == []
    own, other = f"{KEY}/own", f"{KEY}/other"
    two = lines(*[0.6] * RULE.steps, key=own, **{other: 0.6, "realign_failed_share/other": 0.0})
    assert [found.teacher for found in narrow_supports(two)] == ["own"]


def told(loss: dict[str, Any], *teachers: str, **sections: Any) -> str:
    """The advice of a run in which the supports of these teachers hold too little."""
    found = [Narrow(name, RULE.steps, 0.6) for name in teachers or ("",)]
    return advice({"loss": loss, **sections}, found)


def test_the_advice_names_what_is_set_and_what_would_help() -> None:
    usual = told({"top_k": 2, "support": "teacher", "support_mass": None, "tail": "none"})
    assert '(loss.top_k = 2, loss.support = "teacher")' in usual
    assert 'Set a larger loss.top_k, or loss.tail = "bucket"' in usual
    assert '"union"' not in usual, "twice the K of the teacher holds as much at least"
    assert 'loss.support = "union"' in told({"top_k": 2, "support": "student+sampled"})
    cut = told({"top_k": 32, "support": "teacher", "support_mass": 0.5})
    assert "loss.support_mass = 0.5" in cut
    assert "Set a larger loss.support_mass, or a larger loss.top_k" in cut
    assert "loss.tail" not in told({"top_k": 2}), "a loss of one's own that has none"


def test_the_advice_names_the_k_that_a_teacher_has_of_its_own() -> None:
    loss = {"top_k": 128, "support": "teacher"}
    teachers = {"own": {"top_k": 8}, "shared": {"top_k": None}, "other": {}}
    own = told(loss, "own", teachers=teachers)
    assert '(teachers.own.top_k = 8, loss.support = "teacher")' in own
    assert own.endswith("Set a larger teachers.own.top_k")
    for name in ("shared", "other", "gone"):
        assert "(loss.top_k = 128, " in told(loss, name, teachers=teachers)
    both = told(loss, "own", "shared", "other", teachers=teachers)
    assert "(teachers.own.top_k = 8, loss.top_k = 128, " in both
    assert both.endswith("Set a larger teachers.own.top_k and loss.top_k")


def test_the_advice_says_that_removed_ids_count_as_outside() -> None:
    """Where a mask takes ids out of the support, a larger K brings none of them."""

    def of_mask(**mask: Any) -> bool:
        return "remove_from_support" in told({"top_k": 2, "mask": mask})

    assert of_mask(remove_from_support=True, token_ids=[2], strings=[])
    assert of_mask(remove_from_support=True, token_ids=[], strings=["<think>"])
    assert not of_mask(remove_from_support=True, token_ids=[], strings=[]), "there are none"
    assert not of_mask(remove_from_support=False, token_ids=[2], strings=["<think>"])
