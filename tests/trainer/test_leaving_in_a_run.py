"""A run logs once that its student leaves the support, and not again when it resumes."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from functools import partial

import pytest

from student_trainer import loop
from student_trainer.diagnostics.leaving import LeavingRule, SupportWatch
from student_trainer.settings.train import TrainConfig
from student_trainer.train import train
from tests.trainer.processes import Server

# Holds for any run of two steps whose student has less mass on the support than its teacher.
ALWAYS = LeavingRule(least_steps=2, loss=100.0, outside=0.0, errors=-1e9)


def test_it_is_logged_once(
    make_config: Callable[..., TrainConfig],
    run_server: Server,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(loop, "SupportWatch", partial(SupportWatch, rule=ALWAYS))

    def lines_of(steps: int) -> list[str]:
        caplog.clear()
        settings = make_config(
            run={"steps": steps},
            teacher={"address": run_server.address},
            checkpoint={"every": 1},
        )
        with caplog.at_level(logging.WARNING, logger="student_trainer"):
            run = train(settings)
        steps_made = (run / "metrics.jsonl").read_text().splitlines()
        assert [json.loads(line)["step"] for line in steps_made] == list(range(1, steps + 1))
        return [r.getMessage() for r in caplog.records if "outside the support" in r.getMessage()]

    (said,) = lines_of(3)
    assert said.startswith("step 2: the student's mass outside the support has risen from ")
    assert 'set loss.tail = "bucket"' in said
    # Of the new steps alone the rule would hold again.
    assert lines_of(6) == [], "the resumed run knows that it was told"


def test_a_run_whose_loss_sees_the_mass_outside_is_not_told(
    make_config: Callable[..., TrainConfig],
    run_server: Server,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(loop, "SupportWatch", partial(SupportWatch, rule=ALWAYS))
    settings = make_config(
        run={"steps": 3}, teacher={"address": run_server.address}, loss={"tail": "bucket"}
    )
    with caplog.at_level(logging.WARNING, logger="student_trainer"):
        train(settings)
    assert "outside the support" not in caplog.text
