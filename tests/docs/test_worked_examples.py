"""The worked examples, run in small form against a real teacher process."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from teacher_proto.errors import ConfigurationError

from student_trainer.cli import run as run_trainer
from student_trainer.run.directory import read_metrics
from tests.support.models import make_tiny_model
from tests.trainer.conftest import write_prompts
from tests.trainer.processes import ENVIRONMENT, Server, serve

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, tiny_model_dir: Path) -> Iterator[Server]:
    with serve(tmp_path_factory.mktemp("server"), default=tiny_model_dir) as running:
        yield running


@pytest.fixture(scope="module")
def student_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("models") / "student", seed=7)


def run(*arguments: str) -> str:
    path = os.pathsep.join(sys.path)
    done = subprocess.run(
        [sys.executable, *arguments],
        env={**ENVIRONMENT, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_plain_loop_trains(server: Server, student_dir: Path) -> None:
    script = str(EXAMPLES / "plain_loop.py")
    out = run(script, "--teacher", server.address, "--student", str(student_dir), "--steps", "3")
    losses = [float(value) for value in re.findall(r"loss (\S+)", out)]
    assert len(losses) == 3
    assert all(0 < loss < 50 for loss in losses)


def test_a_weight_of_ones_own_trains_from_beside_the_configuration(
    server: Server, student_dir: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(EXAMPLES / "own_weight", tmp_path / "own"))
    prompts = write_prompts(tmp_path / "prompts.jsonl")
    small = {
        "run.output_dir": tmp_path / "run", "run.steps": 3, "student.model": student_dir,
        "teacher.address": server.address, "data.train": prompts, "data.max_prompt_tokens": 64,
        "rollout.group_size": 2, "rollout.prompts_per_step": 2, "rollout.max_new_tokens": 40,
        "report.html": "false", "evaluation.prompts": 0,
    }  # fmt: skip
    given = [word for key, value in small.items() for word in ("--set", f"{key}={value}")]

    shorter = ["--set", 'weights=[{kind = "repeats:Repeats", tokens = 1, weight = 0.25}]']
    out = run("-m", "student_trainer", "train", str(folder / "run.toml"), *given, *shorter)
    assert "step 3/3  loss " in out
    lines = read_metrics(tmp_path / "run" / "metrics.jsonl")
    assert [line["step"] for line in lines] == [1, 2, 3]
    assert all(0.25 < line["row_weight"] < 1 for line in lines), "tokens come again"
    saved = tomllib.loads((tmp_path / "run" / "config.toml").read_text())
    assert saved["weights"] == [{"kind": "repeats:Repeats", "tokens": 1, "weight": 0.25}]
    # The run goes on from its checkpoint with the same weights alone.
    more = ["train", str(folder / "run.toml"), *given, "--set", "run.steps=4"]
    with pytest.raises(ConfigurationError, match="the checkpoint's: weights"):
        run_trainer(more)
    assert run_trainer([*more, *shorter]) == 0
    assert [line["step"] for line in read_metrics(tmp_path / "run" / "metrics.jsonl")][-1] == 4


def test_trl_trains_with_the_service_as_its_teacher(
    server: Server, student_dir: Path, tmp_path: Path
) -> None:
    pytest.importorskip("trl", reason="trl is a development extra")
    common = ("--teacher", server.address, "--student", str(student_dir))
    more = ("--output", str(tmp_path / "out"), "--steps", "2")
    out = run(str(EXAMPLES / "trl_trainer.py"), *common, *more)
    losses = [float(value) for value in re.findall(r"'loss': '?([\d.]+)", out)]
    assert len(losses) == 2, out
    assert all(0 < loss < 50 for loss in losses)
