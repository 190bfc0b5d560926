"""summary.json and samples.json, made from the run's files."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from student_trainer.evaluation.files import load_evaluation, save_evaluation
from student_trainer.evaluation.results import (
    CoarseDivergence,
    RealignedDivergence,
    SampledPosition,
)
from student_trainer.report import write_report
from student_trainer.report.summary import write_summary
from student_trainer.teacher.mask_reasons import EXPLAINED, metric_of
from tests.report.conftest import HOSTILE, evaluation, write_run

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


def across(folder: Path) -> Path:
    """A run across tokenizers: of its 400 frozen positions 40 are masked and 60 coarse. The
    file of before the run is of a version without coarse rows, which counted them as masked."""
    run = write_run(folder)
    shares = dict.fromkeys(EXPLAINED, 0.0) | {"DOUBTFUL": 0.2, "LONG_CHUNK": 0.05}
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    for line in lines:
        told = {metric_of(name): share * line["step"] for name, share in shares.items()}
        line |= told
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    part = RealignedDivergence(300, 100, 1.0, 0.5, 0.5, 0.8, 0.9, 0.02)
    coarse = CoarseDivergence(0.25, 0.5, 0.3, 0.4)
    later = replace(part, masked_rows=40, reverse_kl=0.5, coarse_rows=60, coarse=coarse)
    for name, found in (("before", part), ("after", later)):
        whole = evaluation(1.0, "hi there", 30.0)
        first = replace(
            whole.samples[0],
            positions=(
                SampledPosition("hi", "ALIGNED", ""),
                SampledPosition(" there", "COARSE", "DOUBTFUL"),
            ),
        )
        made = replace(
            whole,
            frozen=None,
            fresh=None,
            frozen_realigned=found,
            samples=(first, *whole.samples[1:]),
        )
        save_evaluation(made, run / "evaluation" / f"{name}.json")
        assert load_evaluation(run / "evaluation" / f"{name}.json") == made
    return run


def test_coarse_positions_are_apart_and_reasons_are_over_all_steps(tmp_path: Path) -> None:
    run = across(tmp_path / "across")
    summary = write_summary(run)
    assert summary["support_masked_share_before"] == 0.25
    assert summary["support_coarse_share_before"] is None, "it did not say"
    assert summary["support_masked_share_after"] == pytest.approx(0.1)
    assert summary["support_coarse_share_after"] == pytest.approx(0.15)
    assert summary["support_coarse_reverse_kl_after"] == 0.25
    assert summary["support_coarse_teacher_rest_after"] == 0.4
    assert summary["fresh_support_coarse_share_after"] is None
    tokens = {1: 101, 2: 102, 3: 103}
    mean = sum(step * count for step, count in tokens.items()) / sum(tokens.values())
    assert summary["mask_reasons"] == dict.fromkeys(EXPLAINED, 0) | {
        "DOUBTFUL": pytest.approx(0.2 * mean),
        "LONG_CHUNK": pytest.approx(0.05 * mean),
    }
    told = json.loads((run / "samples.json").read_text())[0]["after"]["positions"]
    assert told[1] == {"text": " there", "kind": "COARSE", "reason": "DOUBTFUL"}
    assert "positions" not in json.loads((run / "samples.json").read_text())[1]["after"]


def test_the_report_says_why_positions_are_masked(tmp_path: Path, run_dir: Path) -> None:
    page = write_report(across(tmp_path / "across")).read_text()
    text = " ".join(page.split())
    doubtful, long = text.index(">DOUBTFUL<"), text.index(">LONG_CHUNK<")
    assert text.index("Why positions are masked or coarse") < doubtful < long
    assert ">40.13%</td>" in text[doubtful:long]
    assert EXPLAINED["DOUBTFUL"] in text[doubtful:long]
    assert ">UNREADABLE<" not in text
    assert "Positions coarse, frozen" in text
    assert "<h2>Why positions are masked" not in write_report(run_dir).read_text()
