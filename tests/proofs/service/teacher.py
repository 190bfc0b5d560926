"""A real server process under a proof, and what can be read of it from outside."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil
from teacher_proto import TeacherClient, codec
from teacher_proto.types import Continuation, ScoreRequest, Segment, TokenPrompt

from benchmarks.load_fleet import Server as Fleet
from tests.server.processes import Program, serving

LONG = 60.0
MIB = 1 << 20
SCORE = "/teacher_proto.v1.TeacherScoringService/Score"


def tokens(number: int) -> Continuation:
    return Continuation((Segment(np.arange(number, dtype=np.int32) % 256),))


@dataclass
class Watched:
    """A running server.

    Attributes:
        tokenizer: the hash of the teacher's own.
        probes: jobs that the server made itself, before it was ready.
    """

    program: Program
    folder: Path
    tokenizer: str
    probes: int = 0

    @property
    def grpc(self) -> str:
        return str(self.program.facts["grpc_address"])

    @property
    def http(self) -> str:
        return str(self.program.facts["http_address"])

    @property
    def pid(self) -> int:
        return self.program.process.pid

    @property
    def alive(self) -> bool:
        return self.program.process.poll() is None

    @property
    def fleet(self) -> Fleet:
        return Fleet(self.grpc, self.http, self.program.process)  # type: ignore[arg-type]

    def request(self, mark: int, request_id: str, **changes: object) -> ScoreRequest:
        """A request of 64 tokens, whose prompt begins with ``mark``."""
        fields = {
            "request_id": request_id,
            "run": "run",
            "teacher": "default",
            "tokenizer_hash": self.tokenizer,
            "prompt": TokenPrompt(np.array([mark, *range(1, 16)], np.int32)),
            "continuations": (tokens(48),),
            "top_k": 8,
            "temperature": 1.0,
        }
        return ScoreRequest(**(fields | changes))  # type: ignore[arg-type]

    def body(self, mark: int, request_id: str, **changes: object) -> bytes:
        return codec.serialize(codec.encode_request(self.request(mark, request_id, **changes)))

    def get(self, path: str, **headers: str) -> tuple[int, bytes]:
        """Status and body of a GET."""
        asked = urllib.request.Request(f"http://{self.http}{path}", headers=headers)
        try:
            with urllib.request.urlopen(asked, timeout=LONG) as answer:
                return answer.status, answer.read()
        except urllib.error.HTTPError as error:
            return error.code, error.read()

    def metric(self, name: str) -> float:
        """The sum of a metric over its labels."""
        lines = self.get("/metrics")[1].decode().splitlines()
        return sum(
            float(line.split()[-1]) for line in lines if line.startswith((f"{name}{{", f"{name} "))
        )

    def started(self) -> list[tuple[int, float]]:
        """(mark, monotonic seconds) of every job whose computing started."""
        lines = (self.folder / "journal").read_text().splitlines()
        return [(int(line.split()[0]), float(line.split()[1])) for line in lines[self.probes :]]

    def memory(self) -> int:
        """Resident bytes of the server process."""
        for line in Path(f"/proc/{self.pid}/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) * 1024
        raise RuntimeError("the server has ended")

    def children(self) -> int:
        """Processes below the server's: those of students' tokenizers."""
        return len(psutil.Process(self.pid).children(recursive=True))

    def descriptors(self) -> int:
        """Open ones, without the one socket that leads to each child process."""
        return len(os.listdir(f"/proc/{self.pid}/fd")) - self.children()

    def threads(self) -> int:
        return len(os.listdir(f"/proc/{self.pid}/task"))

    def tasks(self) -> int:
        """Tasks of the server's event loop."""
        path = self.folder / "tasks"
        path.unlink(missing_ok=True)
        os.kill(self.pid, signal.SIGUSR1)
        until(path.exists, LONG)
        return int(path.read_text())


@contextlib.contextmanager
def teacher(
    model: Path,
    folder: Path,
    *settings: str,
    rate: float = 0.0,
    broken: str = "",
    token: str = "",
    before: Sequence[str] = (),
) -> Iterator[Watched]:
    """A ready server over one model; killed at the end if it still runs.

    Args:
        before: a command that runs the program named after it, in its own process.
        rate: tokens per second of an engine of set service time; 0 for the real one.
        broken: the guard to break (``program.BREAKS``).
        token: of a run that may ask, where there are credentials.
    """
    folder.mkdir(parents=True, exist_ok=True)
    options = {
        "rate": rate,
        "broken": broken,
        "journal": str(folder / "journal"),
        "tasks": str(folder / "tasks"),
    }
    program = [sys.executable, "-m", "tests.proofs.service.program", json.dumps(options)]
    start = [*before, *program]
    given = ["--model", str(model), "--dtype", "float32", "--device", "cpu"]
    given += [part for setting in settings for part in ("--set", setting)]
    with serving(folder, *given, start=start) as running:
        found = Watched(running, folder, tokenizer_of(str(running.facts["grpc_address"]), token))
        found.probes = len(found.started())
        yield found


def tokenizer_of(address: str, token: str) -> str:
    from teacher_proto.client.credentials import ClientCredentials

    with TeacherClient(address, run="", credentials=ClientCredentials(token=token)) as client:
        (teacher,) = client.get_teacher(timeout=LONG).teachers
    return teacher.identity.tokenizer_hash


def until(condition: Callable[[], bool], seconds: float = LONG, pause: float = 0.002) -> float:
    """Waits until the condition holds and gives the seconds that took; fails after ``seconds``."""
    began = time.monotonic()
    sleeping = threading.Event()
    while not condition():
        assert time.monotonic() - began < seconds, "it did not happen in time"
        sleeping.wait(pause)
    return time.monotonic() - began
