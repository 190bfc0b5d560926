"""The HTTP examples of docs/inspect.md, run as they stand against a real server."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.clients.packages import node
from tests.server.processes import serving

PAGE = (Path(__file__).parents[2] / "docs" / "inspect.md").read_text()
SECTION = PAGE.partition("## Over HTTP")[2].partition("\n## ")[0]
FETCH_SINCE = 18  # the first Node that has fetch
TOKEN = " capital"


@pytest.fixture(scope="module")
def address(tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("served")
    with serving(folder, "--model", str(tiny_model_dir), "--dtype", "float32") as program:
        yield program.facts["http_address"]


@pytest.mark.parametrize("language", ["bash", "python", "javascript"])
def test_an_example_gets_rows(language: str, address: str, tmp_path: Path) -> None:
    (text,) = re.findall(rf"```{language}\n(.*?)```", SECTION, re.DOTALL)
    assert "localhost:8080" in text
    file = tmp_path / {"bash": "ask.sh", "python": "ask.py", "javascript": "ask.mjs"}[language]
    file.write_text(text.replace("localhost:8080", address))
    if language == "bash" and shutil.which("curl") is None:
        pytest.skip("curl is not installed")
    program = {"bash": lambda: "bash", "python": lambda: sys.executable}.get(
        language, lambda: node(FETCH_SINCE)
    )()
    done = subprocess.run([program, str(file)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert TOKEN in done.stdout
