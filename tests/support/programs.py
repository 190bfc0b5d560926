"""Both programs as processes forked from one that has imported them (zygote.py)."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.support.faults import Fault
from tests.trainer.processes import ENVIRONMENT, PATIENCE

TRAINER = ("student_trainer", "student_trainer.cli", "student_trainer.train", "peft")
TEACHER = ("teacher_server", "teacher_server.cli", "teacher_server.commands.serve",
           "teacher_server.engines.torch.transformers")  # fmt: skip
MODEL = "transformers.models.llama.modeling_llama"


@dataclass
class Child:
    zygote: Zygote
    pid: int
    code: int | None = None

    def wait(self) -> int:
        """Its exit code; negative for a signal."""
        if self.code is None:
            self.code = self.zygote.ask({"wait": self.pid})["code"]
            self.zygote.children.remove(self)
        return self.code

    def send(self, number: signal.Signals) -> None:
        assert self.code is None
        os.kill(self.pid, number)


@dataclass
class Zygote:
    """A context manager; what still runs at its end is killed."""

    program: Sequence[str]
    before: Sequence[str] = ()
    children: list[Child] = field(default_factory=list)

    def __enter__(self) -> Zygote:
        command = [*self.before, sys.executable, "-m", "tests.support.zygote", *self.program, MODEL]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=ENVIRONMENT
        )
        self.lock = threading.Lock()
        return self

    def __exit__(self, *exception: object) -> None:
        self.stop()
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait(PATIENCE)

    def stop(self) -> None:
        """Kills what still runs."""
        for child in list(self.children):
            child.send(signal.SIGKILL)
            child.wait()

    def ask(self, order: dict[str, Any]) -> dict[str, Any]:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        with self.lock:
            self.process.stdin.write(json.dumps(order) + "\n")
            self.process.stdin.flush()
            answer: dict[str, Any] = json.loads(self.process.stdout.readline())
        return answer

    def start(
        self,
        argv: Sequence[str],
        folder: Path,
        faults: Sequence[Fault] = (),
        environment: Mapping[str, str] | None = None,
        inside: Path | None = None,
    ) -> Child:
        """Runs the program; its output goes to ``folder``'s files output and errors.

        Both exist on return, so that they can be read before the program has opened them.

        Args:
            environment: variables that are added to the zygote's.
            inside: the working directory; None for the zygote's.
        """
        folder.mkdir(parents=True, exist_ok=True)
        for name in ("output", "errors"):
            (folder / name).touch()
        order = {
            "argv": list(argv),
            "output": str(folder / "output"),
            "errors": str(folder / "errors"),
            "faults": list(faults),
            "environment": dict(environment or {}),
            "folder": str(inside or ""),
        }
        child = Child(self, self.ask(order)["pid"])
        self.children.append(child)
        return child


@dataclass
class Teacher:
    """One teacher server after another on one port."""

    zygote: Zygote
    folder: Path
    address: str = "127.0.0.1:0"
    children: list[Child] = field(default_factory=list)

    def stop(self) -> None:
        """Kills the one that runs."""
        for child in self.children:
            if child.code is None:
                child.send(signal.SIGKILL)
                child.wait()

    def start(self, model: Path, faults: Sequence[Fault] = ()) -> Child:
        """A deterministic server over the model, ready."""
        ready = self.folder / f"ready-{len(self.children)}.json"
        port = self.address.rpartition(":")[2]
        argv = ["serve", "--deterministic", "--teacher", f"default={model}", "--grpc-port", port]
        argv += ["--http-port", "0", "--ready-file", str(ready)]
        child = self.zygote.start(argv, self.folder, faults)
        self.children.append(child)
        pause = threading.Event()
        for _ in range(int(PATIENCE / 0.02)):
            if ready.exists():
                break
            pause.wait(0.02)
        self.address = json.loads(ready.read_text())["grpc_address"]
        return child
