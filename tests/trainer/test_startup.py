"""One start, three uses: the run, its doctor and its dry run make the same steps."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tomli_w
from teacher_proto.errors import ConfigurationError
from teacher_proto.program.entrypoint import run_program

from student_trainer import cli
from student_trainer.startup import steps
from student_trainer.startup.start import Start, Step
from tests.trainer.conftest import settings, write_prompts
from tests.trainer.processes import Server

Run = Callable[..., list[str]]


@pytest.fixture
def run(run_server: Server, student_model_dir: Path, tmp_path: Path) -> Run:
    """Arguments of a command for a small run with these sections."""

    def make(model: Path = student_model_dir, **sections: dict[str, Any]) -> list[str]:
        if not (tmp_path / "prompts.jsonl").exists():
            write_prompts(tmp_path / "prompts.jsonl")
        teacher = {"address": run_server.address, **sections.pop("teacher", {})}
        values = settings(model, tmp_path, teacher=teacher, **sections)
        (tmp_path / "run.toml").write_text(tomli_w.dumps(values))
        return [str(tmp_path / "run.toml")]

    return make


def doctor(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> dict[str, dict[str, Any]]:
    capsys.readouterr()
    cli.main(["doctor", *arguments, "--json"])
    return {f["check"]: f for f in json.loads(capsys.readouterr().out)["checks"]}


@pytest.mark.parametrize("reads", ["machine", "inputs", "teacher", "model"])
def test_a_step_that_is_added_is_made_by_all_three(
    run: Run, reads: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(start: Start) -> str:
        raise ConfigurationError("the moon is full", where="moon", fix="wait")

    added = (*steps.STEPS[:2], Step("moon", refuse, reads=reads), *steps.STEPS[2:])
    monkeypatch.setattr(steps, "STEPS", added)
    arguments = run(run={"steps": 1})
    found = doctor(arguments, capsys)
    assert (found["moon"]["status"], found["moon"]["exit_code"]) == ("failed", 2)
    assert list(found).index("moon") == 3
    assert found["repeat"]["status"] == "ok"
    for command in (["train"], ["train", "--dry-run"]):
        looks = command == ["train"] or reads in ("machine", "inputs")
        assert run_program(cli.run, [*command, *arguments]) == (2 if looks else 0)
        assert ("moon: the moon is full" in capsys.readouterr().err) == looks


def test_a_warning_of_a_step_is_told_by_all_three(
    run: Run,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    def wane(start: Start) -> str:
        start.warn("the moon wanes")
        return "it is there"

    monkeypatch.setattr(steps, "STEPS", (Step("moon", wane, reads="machine"), *steps.STEPS))
    arguments = run(run={"steps": 1})
    assert doctor(arguments, capsys)["moon"]["detail"] == "it is there; the moon wanes"
    assert run_program(cli.run, ["train", *arguments, "--dry-run"]) == 0
    assert "# moon: it is there; the moon wanes" in capsys.readouterr().out
    assert run_program(cli.run, ["train", *arguments]) == 0
    (warned,) = [r for r in caplog.records if "the moon wanes" in r.message]
    assert warned.levelname == "WARNING"


def test_what_a_step_needs_stands_before_it() -> None:
    from student_trainer.commands.examination import EXAMINATION

    made: list[str] = []
    for step in (*steps.STEPS, *EXAMINATION):
        assert set(step.needs) <= set(made), step.name
        assert step.name not in made
        made.append(step.name)
    near = {step.name for step in steps.STEPS if step.reads in ("machine", "inputs")}
    for step in steps.STEPS:
        assert step.name not in near or set(step.needs) <= near, "a dry run leaves none out"


def test_the_students_own_support_is_checked_as_the_run_asks_for_it(
    run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    """K of a student's support is explicit ids of the teacher, not its top K."""
    arguments = run(loss={"kind": "lsm", "support": "student", "top_k": 5000})
    found = doctor(arguments, capsys)
    assert found["limits"]["status"] == "failed"
    told = found["limits"]["detail"]
    assert "its explicit ids per row" in told
    assert run_program(cli.run, ["train", *arguments]) == found["limits"]["exit_code"]
    assert told.partition(": ")[2] in capsys.readouterr().err


@pytest.mark.parametrize("name", ["x" * 300, "dangling"])
def test_an_output_dir_that_cannot_be_made_is_told(
    run: Run, tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere" / "at" / "all")
    arguments = run(model=tmp_path, run={"output_dir": str(tmp_path / name)})
    for command in (["train"], ["train", "--dry-run"]):
        assert run_program(cli.run, [*command, *arguments]) == 2
        assert "run.output_dir: " in capsys.readouterr().err
    assert doctor(arguments, capsys)["run directory"]["status"] == "failed"


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("checkpoints", "file"),
        ("evaluation", "file"),
        ("model", "file"),
        ("config.toml", "folder"),
        ("metrics.jsonl", "folder"),
        ("summary.json", "folder"),
        ("", "file"),
    ],
)
def test_a_bad_output_dir_is_told_before_anything_is_loaded(
    run: Run, tmp_path: Path, name: str, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = run(model=tmp_path)  # loading this student fails
    target = tmp_path / "run" / name
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text("") if kind == "file" else target.mkdir(parents=True)
    for command in (["train"], ["train", "--dry-run"]):
        assert run_program(cli.run, [*command, *arguments]) == 2
        assert "run.output_dir: " in capsys.readouterr().err
    assert doctor(arguments, capsys)["run directory"]["status"] == "failed"
