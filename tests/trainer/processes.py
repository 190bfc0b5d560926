"""Both programs as real processes on loopback."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
PATIENCE = 120.0


@dataclass
class Server:
    process: subprocess.Popen[bytes]
    address: str
    http: str = ""

    def stop(self) -> None:
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(PATIENCE)


@contextmanager
def serve(directory: Path, *, port: int = 0, **teachers: Path) -> Iterator[Server]:
    """A deterministic ``teacher-server`` with these teachers."""
    directory.mkdir(parents=True, exist_ok=True)
    ready = directory / "ready.json"
    ready.unlink(missing_ok=True)
    command = [sys.executable, "-m", "teacher_server", "serve", "--deterministic"]
    command += ["--grpc-port", str(port), "--http-port", "0", "--ready-file", str(ready)]
    for name, model in teachers.items():
        command += ["--teacher", f"{name}={model}"]
    log = directory / "server.log"
    with log.open("ab") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, env=ENVIRONMENT)
    try:
        pause = threading.Event()
        for _ in range(int(PATIENCE / 0.05)):
            if ready.exists():
                break
            assert process.poll() is None, log.read_text()
            pause.wait(0.05)
        facts = json.loads(ready.read_text())
        yield Server(process, facts["grpc_address"], facts["http_address"])
    finally:
        if process.poll() is None:
            process.kill()
        process.wait(PATIENCE)


@contextmanager
def trainer(config: Path) -> Iterator[subprocess.Popen[str]]:
    """``student-trainer train CONFIG`` with its output to be read by line."""
    command = [sys.executable, "-m", "student_trainer", "train", str(config)]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate()


def steps(process: subprocess.Popen[str], count: int) -> list[int]:
    """The numbers of the next ``count`` steps of a trainer, by the lines that it prints."""
    assert process.stdout is not None
    numbers = []
    while len(numbers) < count:
        line = process.stdout.readline()
        assert line, process.communicate()[1]
        told = re.match(r"step (\d+)/\d+  loss ", line)
        assert told, line
        numbers.append(int(told[1]))
    return numbers
