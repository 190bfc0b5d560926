"""A run logs once that its support holds too little of the teacher's mass."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from typing import Any

import pytest

from student_trainer.diagnostics.narrow import RULE
from student_trainer.report.verdict import run_findings
from student_trainer.settings.train import TrainConfig
from student_trainer.train import train
from tests.trainer.processes import Server

TITLE = "The support holds little of the teacher's mass"


@pytest.fixture
def said(
    make_config: Callable[..., TrainConfig], run_server: Server, caplog: pytest.LogCaptureFixture
) -> Callable[..., tuple[list[str], list[str], float]]:
    """Makes a run; returns its warnings and findings about the support, and the teacher's mean
    mass on it."""

    def make(
        steps: int = RULE.steps,
        teacher: str = "default",
        own: dict[str, Any] | None = None,
        **sections: Any,
    ) -> tuple[list[str], list[str], float]:
        caplog.clear()
        served = {"address": run_server.address, "name": teacher}
        config = make_config(
            run={"steps": steps},
            **({"teacher": served} if own is None else {"teachers": {"only": {**served, **own}}}),
            optimizer={"lr": 1e-5},
            **sections,
        )
        with caplog.at_level(logging.WARNING, logger="student_trainer"):
            run = train(config)
        lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        masses = [line["teacher_support_mass"] for line in lines[: RULE.steps]]
        told = [r.getMessage() for r in caplog.records if "the support holds" in r.getMessage()]
        found = [one.value for one in run_findings(run) if one.title == TITLE]
        return told, found, sum(masses) / len(masses)

    return make


def test_few_ids_are_told_once(said: Callable[..., Any]) -> None:
    told, found, mass = said(loss={"top_k": 2})
    assert mass < 1 - RULE.outside, "the teacher's distributions are wide"
    (warning,) = told
    first = f"the support holds {mass:.1%} of the teacher's mass (mean of the first 5 steps)"
    assert warning.startswith(f"step {RULE.steps}: {first}. A loss that is renormalised")
    assert "loss.top_k = 2" in warning
    assert found == [first], "the report says the same"
    # Of the new steps alone the rule would hold again.
    told, found, _ = said(2 * RULE.steps, loss={"top_k": 2})
    assert (told, found) == ([], [first]), "the resumed run knows that it was told"


def test_the_own_k_of_a_teacher_is_what_is_told(said: Callable[..., Any]) -> None:
    told, found, _ = said(own={"top_k": 2}, loss={"top_k": 256})
    (warning,) = told
    assert "(teachers.only.top_k = 2, " in warning
    assert "a larger teachers.only.top_k" in warning
    assert "loss.top_k" not in warning
    assert len(found) == 1


@pytest.mark.parametrize(
    "changed", [{"loss": {"top_k": 256}}, {"loss": {"top_k": 2, "tail": "bucket"}}]
)
def test_many_ids_are_not_told_nor_a_loss_that_sees_the_rest(
    said: Callable[..., Any], changed: dict[str, Any]
) -> None:
    told, found, mass = said(**changed)
    assert (mass < 1 - RULE.outside) == (changed["loss"]["top_k"] == 2)
    assert (told, found) == ([], [])


def test_rows_of_a_teacher_with_another_tokenizer_are_not_told(said: Callable[..., Any]) -> None:
    told, found, mass = said(teacher="other")
    assert mass < 1 - RULE.outside
    assert (told, found) == ([], [])
