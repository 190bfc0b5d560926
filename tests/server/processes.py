"""Real ``teacher-server`` processes."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

LONG = 120.0
ROOT = Path(__file__).parents[2]


@dataclass
class Program:
    process: subprocess.Popen[str]
    log: Path
    facts: dict[str, Any]

    def end(self, number: int = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        return self.process.wait(LONG)


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "teacher_server", *arguments]


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(*arguments), capture_output=True, text=True, timeout=LONG, cwd=ROOT, check=False
    )


@contextlib.contextmanager
def serving(folder: Path, *arguments: str, start: list[str] | None = None) -> Iterator[Program]:
    """A ready server on free ports; ended at the end if it still runs."""
    ready, log = folder / "ready.json", folder / "log"
    ports = ("--grpc-port", "0", "--http-port", "0", "--ready-file", str(ready))
    with log.open("w") as sink:
        process = subprocess.Popen(
            (start or command("serve")) + [*arguments, *ports],
            stderr=sink,
            stdout=sink,
            text=True,
            cwd=ROOT,
            env=os.environ | {"PYTHONPATH": os.pathsep.join((str(ROOT), str(ROOT / "proto")))},
        )
    try:
        end = time.monotonic() + LONG
        while not ready.exists():
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < end, log.read_text()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(0.05)
        yield Program(process, log, json.loads(ready.read_text()))
    finally:
        if process.poll() is None:
            process.kill()
            process.wait(LONG)
