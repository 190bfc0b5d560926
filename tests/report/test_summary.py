"""summary.json and samples.json, made from the run's files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from student_trainer.report.summary import write_summary
from tests.report.conftest import HOSTILE

PROMISED = {
    "teacher": "models/teacher",
    "student": "models/student",
    "steps": 3,
    "tokens": 306,
    "seconds": 33.5,
    "reverse_kl_before": 2.0,
    "reverse_kl_after": 0.5,
    "forward_kl_before": 1.0,
    "forward_kl_after": 0.25,
    "agreement_before": 0.5,
    "agreement_after": 0.875,
    "rollout_length_before": 30.0,
    "rollout_length_after": 25.0,
    "held_out_prompts": 4,
}


def test_every_promised_key_has_its_figure(run_dir: Path) -> None:
    summary = write_summary(run_dir)
    assert {key: summary[key] for key in PROMISED} == pytest.approx(PROMISED)
    assert summary["fresh_reverse_kl_before"] == 3.0
    assert summary["fresh_rows_after"] == 250
    assert summary["frozen_rows"] == 256
    assert (summary["loss"], summary["top_k"]) == ("lsm", 32)
    assert summary["teacher_identity"] == "id-1"
    assert json.loads((run_dir / "summary.json").read_text()) == summary


def test_what_was_not_measured_is_null(unevaluated: Path) -> None:
    write_summary(unevaluated)
    summary = json.loads((unevaluated / "summary.json").read_text())
    assert set(PROMISED) <= set(summary)
    assert summary["reverse_kl_before"] is None
    assert summary["rollout_length_after"] is None
    assert summary["held_out_prompts"] == 0
    assert summary["teacher"] == "default"
    assert json.loads((unevaluated / "samples.json").read_text()) == []


def test_samples_stand_side_by_side(run_dir: Path) -> None:
    write_summary(run_dir)
    samples = json.loads((run_dir / "samples.json").read_text())
    assert [s["prompt"] for s in samples] == ["Say <hi>", "Second"]
    assert samples[0]["before"] == {"text": HOSTILE, "tokens": 7, "finished": True}
    assert samples[0]["after"]["text"] == "hi"


def test_a_run_between_its_evaluations_has_the_first(run_dir: Path) -> None:
    (run_dir / "evaluation" / "after.json").unlink()
    summary = write_summary(run_dir)
    assert summary["reverse_kl_before"] == 2.0
    assert summary["reverse_kl_after"] is None
    samples = json.loads((run_dir / "samples.json").read_text())
    assert samples[0]["after"] is None
