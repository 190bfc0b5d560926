"""When the report says that a support holds too little of the teacher's mass, and what to set."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from student_trainer.report.findings import find
from tests.report.test_findings import BETTER, CONFIG, Planted, course, set_to


def test_a_narrow_support_is_found_where_the_loss_does_not_see_the_rest() -> None:
    few = replace(
        course(set_to(teacher_support_mass=0.67), BETTER),
        config={**CONFIG, "loss": {"top_k": 2, "support": "teacher", "tail": "none"}},
    )
    (found,) = find(few)
    assert found.value.startswith("the support holds 67.0% of the teacher's mass")
    assert "loss.top_k = 2" in found.advice
    assert find(replace(few, renormalised=False)) == []
    assert find(replace(few, metrics=few.metrics[:4], points=())) == [], "too few steps"


def test_a_narrow_support_is_not_found_once_it_was_made_larger() -> None:
    """As by a run that is resumed with a larger K; the steps before are in its lines for ever."""

    def larger(mass: float | None) -> Planted:
        return lambda step, line: line.update(teacher_support_mass=0.67 if step <= 20 else mass)

    assert find(course(larger(0.97), BETTER)) == []
    for mass in (0.85, None):
        (found,) = find(course(larger(mass), BETTER))
        assert found.metric == "teacher_support_mass", "larger, but not enough; not known"


def test_a_narrow_support_of_a_teacher_is_found_with_what_sets_its_own_k() -> None:
    keys = [f"teacher_support_mass/{name}" for name in ("first", "second")]
    both = replace(
        course(set_to(**dict.fromkeys(keys, 0.67)), BETTER),
        config={**CONFIG, "teachers": {"first": {"top_k": 8}, "second": {}}},
    )
    (found,) = find(both)
    assert (found.metric, found.setting) == (", ".join(keys), "teachers.first.top_k, loss.top_k")

    def one_mended(step: int, line: dict[str, Any]) -> None:
        line.update({keys[0]: 0.67, keys[1]: 0.67 if step <= 20 else 0.97})

    (found,) = find(replace(both, metrics=course(one_mended).metrics))
    assert (found.metric, found.setting) == (keys[0], "teachers.first.top_k")
    assert "(teachers.first.top_k = 8, loss.support" in found.advice
    assert "loss.top_k" not in found.advice, "it changes nothing for this teacher"
