"""What comes after the last step: the model is saved before anything there can fail, and a run
that is started again makes the rest."""

from __future__ import annotations

import errno
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import tomli_w
import torch
from teacher_proto.program.entrypoint import run_program
from transformers import AutoModelForCausalLM

from student_trainer import cli
from student_trainer.evaluation import load_evaluation
from tests.trainer.conftest import settings, write_prompts
from tests.trainer.processes import Server

MakeRun = Callable[..., list[str]]


@pytest.fixture
def make_run(run_server: Server, student_model_dir: Path, tmp_path: Path) -> MakeRun:
    """Arguments of a short run that is evaluated."""

    def make(**sections: dict[str, Any]) -> list[str]:
        write_prompts(tmp_path / "prompts.jsonl")
        held_out = write_prompts(tmp_path / "held_out.jsonl", ["What is 1?", "What is 2?"])
        sections["data"] = {"held_out": str(held_out)}
        sections["evaluation"] = {"prompts": 2, "frozen_rows": 0, "max_new_tokens": 8}
        sections["run"] = {"steps": 2, **sections.get("run", {})}
        teacher = {"address": run_server.address}
        values = settings(student_model_dir, tmp_path, teacher=teacher, **sections)
        (tmp_path / "run.toml").write_text(tomli_w.dumps(values))
        return ["train", str(tmp_path / "run.toml")]

    return make


@pytest.mark.parametrize(
    ("blocked", "what"),
    [
        ("evaluation/after.json", "the closing evaluation"),
        ("report.html", "the report"),
    ],
)
def test_what_fails_after_the_last_step_leaves_the_model_and_is_made_again(
    make_run: MakeRun,
    tmp_path: Path,
    blocked: str,
    what: str,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run, arguments = tmp_path / "run", make_run()
    assert run_program(cli.run, [*arguments, "--set", "run.steps=1"]) == 0
    before = (run / "model" / "model.safetensors").read_bytes()
    if what == "the report":
        # The start refuses a folder at its place: the disk is full when it is written.
        full = OSError(errno.ENOSPC, "No space left on device", str(run / blocked))
        monkeypatch.setattr("student_trainer.train.write_report", Mock(side_effect=full))
    else:
        (run / blocked).unlink(missing_ok=True)
        (run / blocked).mkdir(parents=True)
    report = f"report.html={what == 'the report'}".lower()
    assert run_program(cli.run, [*arguments, "--set", report]) == 1
    assert f"run.output_dir: cannot write {run / blocked}" in capsys.readouterr().err
    assert f"the trained model is saved in {run / 'model'}; what failed is {what}" in caplog.text
    saved = (run / "model" / "model.safetensors").read_bytes()
    assert saved != before
    model = AutoModelForCausalLM.from_pretrained(run / "model")
    assert torch.isfinite(model(torch.tensor([[1, 2, 3]])).logits).all()
    assert not (run / "evaluation" / "after.json").is_file() or blocked == "report.html"
    if what == "the report":
        monkeypatch.undo()
    else:
        (run / blocked).rmdir()
    capsys.readouterr()
    assert run_program(cli.run, arguments) == 0
    assert not re.search(r"^step \d", capsys.readouterr().out, re.MULTILINE), "none is made again"
    assert "all 2 steps are made" in caplog.text
    assert (run / "model" / "model.safetensors").read_bytes() == saved
    assert json.loads((run / "summary.json").read_text())["steps"] == 2


def test_merged_adapters_are_evaluated_as_they_were_saved(
    make_run: MakeRun, tmp_path: Path
) -> None:
    """The closing evaluation of merged adapters, the head's among them, is that of the model
    that was saved."""
    lora = {"rank": 2, "target_modules": ["q_proj", "lm_head"]}
    arguments = make_run(student={"lora": lora}, optimizer={"lr": 0.05})
    assert run_program(cli.run, arguments) == 0
    merged = tmp_path / "run" / "model"
    after = load_evaluation(tmp_path / "run" / "evaluation" / "after.json")
    before = load_evaluation(tmp_path / "run" / "evaluation" / "before.json")
    assert before.samples != after.samples
    plain = make_run(student={"model": str(merged)}, run={"output_dir": str(tmp_path / "again")})
    assert run_program(cli.run, plain) == 0
    found = load_evaluation(tmp_path / "again" / "evaluation" / "before.json")
    assert found.fresh == after.fresh
    assert found.samples == after.samples


def test_a_rerun_with_fewer_steps_is_refused(
    make_run: MakeRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = make_run()
    assert run_program(cli.run, arguments) == 0
    after = (tmp_path / "run" / "evaluation" / "after.json").read_bytes()
    assert run_program(cli.run, [*arguments, "--set", "run.steps=1"]) == 2
    assert "run.steps: the run has made 2 steps, more than 1" in capsys.readouterr().err
    assert run_program(cli.run, [*arguments, "--set", "run.steps=1", "--dry-run"]) == 2
    assert (tmp_path / "run" / "evaluation" / "after.json").read_bytes() == after


def test_a_held_out_file_that_changed_is_told_at_the_start_by_the_doctor_too(
    make_run: MakeRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = make_run()
    assert run_program(cli.run, arguments) == 0
    write_prompts(tmp_path / "held_out.jsonl", ["What is 1?", "What is 3?"])
    more = ["--set", "run.steps=3"]
    capsys.readouterr()
    assert run_program(cli.run, [*arguments, *more]) == 2
    refused = capsys.readouterr()
    assert "not those of the frozen evaluation" in refused.err
    assert refused.out == "", "before the first step"
    assert cli.main(["doctor", arguments[1], *more, "--json"]) == 2
    found = {f["check"]: f for f in json.loads(capsys.readouterr().out)["checks"]}
    assert "not those of the frozen evaluation" in found["held out"]["detail"]
