"""The notebooks: kept without outputs, and every cell runs against a real service."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.models import make_tiny_model
from tests.support.notebook import BEGINS, code_cells
from tests.trainer.processes import ENVIRONMENT, serve

ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / "examples" / "notebooks").glob("*.ipynb"))


@pytest.fixture(scope="module")
def printed(tmp_path_factory: pytest.TempPathFactory, tiny_model_dir: Path) -> dict[str, str]:
    """What the cells of each notebook print, by its name."""
    folder = tmp_path_factory.mktemp("notebooks")
    with serve(folder / "server", default=tiny_model_dir) as server:
        variables = {
            "TEACHER": server.address,
            "STUDENT": str(make_tiny_model(folder / "student", seed=7)),
            "STEPS": "2",
            "OUTPUT": str(folder / "output"),
            "MPLBACKEND": "agg",
            "PYTHONPATH": os.pathsep.join(sys.path),
        }
        done = subprocess.run(
            [sys.executable, "-m", "tests.support.notebook", *map(str, NOTEBOOKS)],
            env=ENVIRONMENT | variables,
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
        )
    assert done.returncode == 0, done.stderr
    parts = [part.partition("\n") for part in done.stdout.split(BEGINS)[1:]]
    return {name: text for name, _, text in parts}


def test_every_notebook_is_run_here() -> None:
    assert [path.name for path in NOTEBOOKS] == [
        "plain_loop.ipynb",
        "run.ipynb",
        "teacher_rows.ipynb",
    ]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_kept_without_outputs(path: Path) -> None:
    notebook = json.loads(path.read_text(encoding="utf-8"))
    assert (notebook["nbformat"], notebook["nbformat_minor"]) == (4, 5)
    cells = notebook["cells"]
    assert len({cell["id"] for cell in cells}) == len(cells)
    of_code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert len(code_cells(path)) == len(of_code) > 0
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in of_code)


def test_the_rows_of_a_teacher(printed: dict[str, str]) -> None:
    out = printed["teacher_rows.ipynb"]
    own = [float(value) for value in re.findall(r"' (0\.\d{3})   '", out)]
    best = [float(value) for value in re.findall(r"0\.\d{3}   '.*?' (\d\.\d\d), ", out)]
    assert len(own) == len(best) >= 7  # of " The capital of France is Paris."
    assert all(one <= most + 0.01 for one, most in zip(own, best, strict=True))
    (mass,) = re.findall(r"mean mass of 8 ids: (0\.\d+)", out)
    assert 0 < float(mass) < 1


def test_the_plain_loop(printed: dict[str, str]) -> None:
    out = printed["plain_loop.ipynb"]
    found = re.findall(r"step (\d): loss (\S+) nats, the support holds (\S+) of the teacher", out)
    assert [number for number, _, _ in found] == ["1", "2"]
    assert all(0 < float(loss) < 50 and 0 < float(mass) < 1 for _, loss, mass in found)


def test_a_run_with_its_report(printed: dict[str, str]) -> None:
    out = printed["run.ipynb"]
    assert re.findall(r"step (\d), the student writes: ", out) == ["1", "2"]
    assert re.findall(r"evaluated (\w+) training", out) == ["before", "after"]
    assert "steps: 2\n" in out
    (report,) = re.findall(r"report: (.*)", out)
    assert "<html" in Path(report).read_text(encoding="utf-8")
