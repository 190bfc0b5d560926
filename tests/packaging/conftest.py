"""The wheel, and environments it is installed in."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.packaging.environments import ROOT, Environment


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel that ``make wheel`` builds."""
    folder = tmp_path_factory.mktemp("dist")
    command = ["make", "-s", "wheel", f"PYTHON={sys.executable}", f"DIST={folder}"]
    command.append(f"VENV={Path(sys.executable).parents[1]}")
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (built,) = folder.iterdir()
    return built


@pytest.fixture(scope="session")
def base(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Environment:
    """An environment with the wheel and what it requires, no extra."""
    environment = Environment.make(tmp_path_factory.mktemp("base"))
    environment.install("-c", str(ROOT / "constraints.txt"), str(wheel))
    return environment
