"""The worked examples, run in small form against a real teacher process."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.models import make_tiny_model
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
