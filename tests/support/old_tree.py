"""The project as it was before chat templates, clocks and renderings went over the wire:
its programs run beside those of this tree, each on its own source.

The old source is taken out of the history; where there is none (an sdist, a shallow
clone), what needs it is skipped.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import signal
import subprocess
import sys
import tarfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
COMMIT = "b700515c5952efc9304bfcf56eba9a50160f0905"
PATIENCE = 120.0


TRAIN = """
import json, os, sys
from student_trainer.cli import main
codes = []
for config, log in json.loads(sys.argv[1]):
    sys.stderr.flush()
    os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644), 2)
    try:
        codes.append(main(["train", config]))
    except SystemExit as end:
        codes.append(end.code)
sys.stderr.flush()
print(json.dumps(codes))
"""


@dataclass(frozen=True)
class Ended:
    """How a program ended: its exit code, and what it wrote to stderr."""

    code: int
    errors: str

    @property
    def error(self) -> str:
        """The line that says why it ended; empty when it did what it was asked to."""
        if self.code == 0:
            return ""
        (line,) = (each for each in self.errors.splitlines() if each.startswith("error: "))
        return line


@dataclass(frozen=True)
class Tree:
    """A checkout whose programs can be run; ``path`` is its root."""

    path: Path

    @property
    def environment(self) -> dict[str, str]:
        """Variables under which Python imports this tree alone."""
        source = os.pathsep.join((str(self.path), str(self.path / "proto")))
        return {**os.environ, "PYTHONPATH": source, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Runs ``python ARGUMENTS`` to its end, with this tree's source."""
        return subprocess.run(
            [sys.executable, *arguments],
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            cwd=self.path,
            env=self.environment,
            check=False,
        )

    def train(self, config: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
        """``student-trainer train CONFIG``, to its end."""
        return self.run("-m", "student_trainer", "train", str(config), *arguments)

    def train_several(self, *configs: Path) -> list[Ended]:
        """``student-trainer train CONFIG`` for one after another, in one process, which has
        imported the program once."""
        logs = [config.with_suffix(".log") for config in configs]
        order = [[str(config), str(log)] for config, log in zip(configs, logs, strict=True)]
        done = self.run("-c", TRAIN, json.dumps(order))
        assert done.returncode == 0, done.stderr
        codes = json.loads(done.stdout.splitlines()[-1])
        return [Ended(code, log.read_text()) for code, log in zip(codes, logs, strict=True)]

    @contextlib.contextmanager
    def serve(self, folder: Path, *arguments: str, **teachers: Path) -> Iterator[dict[str, Any]]:
        """A deterministic ``teacher-server`` with these teachers; gives what its ready
        file says, among it ``grpc_address`` and ``http_address``."""
        folder.mkdir(parents=True, exist_ok=True)
        ready, log = folder / "ready.json", folder / "server.log"
        ready.unlink(missing_ok=True)
        command = [sys.executable, "-m", "teacher_server", "serve", "--deterministic", *arguments]
        command += ["--grpc-port", "0", "--http-port", "0", "--ready-file", str(ready)]
        for name, model in teachers.items():
            command += ["--teacher", f"{name}={model}"]
        with log.open("ab") as output:
            process = subprocess.Popen(
                command, stdout=output, stderr=output, cwd=self.path, env=self.environment
            )
        try:
            pause = threading.Event()
            for _ in range(int(PATIENCE / 0.05)):
                if ready.exists():
                    break
                assert process.poll() is None, log.read_text()
                pause.wait(0.05)
            yield json.loads(ready.read_text())
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(PATIENCE)
            finally:
                process.kill()
                process.wait()


NEW = Tree(ROOT)


def unpack(folder: Path) -> Tree:
    """The old tree, unpacked into ``folder``; skips the test where the history lacks it."""
    git = ["git", "-C", str(ROOT), "archive", "--format=tar", COMMIT]
    try:
        done = subprocess.run(git, capture_output=True, timeout=PATIENCE, check=False)
    except FileNotFoundError:
        pytest.skip("git is not installed, the old tree comes out of the history")
    if done.returncode:
        reason = done.stderr.decode(errors="replace").strip()
        pytest.skip(f"the history lacks the old tree {COMMIT[:7]}: {reason}")
    with tarfile.open(fileobj=io.BytesIO(done.stdout)) as archive:
        archive.extractall(folder, filter="data")
    return Tree(folder)
