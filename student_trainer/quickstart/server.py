"""A teacher service as a process of its own: started, waited for, and stopped."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from teacher_proto.errors import TeacherUnavailableError

POLL_SECONDS = 0.1
LOG_LINES = 8


@dataclass
class TeacherProcess:
    """Context manager around ``teacher-server serve`` on free loopback ports.

    Attributes:
        model: folder of the teacher.
        log: file for everything that the server prints.
        ready_file: file that the server writes when it is ready.
        arguments: further arguments of ``serve``.
        ready_seconds: how long loading may take.
        stop_seconds: how long the server may take to end after SIGTERM.
        grpc_address, pid: known inside the context.
    """

    model: Path
    log: Path
    ready_file: Path
    arguments: Sequence[str] = ()
    ready_seconds: float = 180.0
    stop_seconds: float = 40.0
    grpc_address: str = field(default="", init=False)
    _process: subprocess.Popen[bytes] | None = field(default=None, init=False)

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def __enter__(self) -> TeacherProcess:
        self.ready_file.unlink(missing_ok=True)
        command = [sys.executable, "-m", "teacher_server", "serve", "--model", str(self.model)]
        command += ["--grpc-port", "0", "--http-port", "0", "--ready-file", str(self.ready_file)]
        command += self.arguments
        with self.log.open("wb") as log:
            # In a session of its own, so that Ctrl-C only reaches the trainer.
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env=os.environ | {"HF_HUB_OFFLINE": "1"},
            )
        try:
            self.grpc_address = self._wait_until_ready()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *exception: object) -> None:
        self.stop()

    def ended(self) -> str:
        """Why the server has ended, with the end of its log; empty while it runs."""
        assert self._process is not None
        code = self._process.poll()
        if code is None:
            return ""
        return f"the teacher server ended with exit code {code}; its last words:\n{self._tail()}"

    def stop(self) -> None:
        """Asks the process to end, waits, and kills it if it does not."""
        if self._process is None:
            return
        if self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(self.stop_seconds)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        self.ready_file.unlink(missing_ok=True)

    def _wait_until_ready(self) -> str:
        assert self._process is not None
        deadline = time.monotonic() + self.ready_seconds
        while time.monotonic() < deadline:
            if self.ready_file.exists():
                facts = json.loads(self.ready_file.read_text(encoding="utf-8"))
                return str(facts["grpc_address"])
            try:
                self._process.wait(POLL_SECONDS)
            except subprocess.TimeoutExpired:
                continue
            raise TeacherUnavailableError(
                self.ended(), where="quickstart", fix=f"see {self.log} for all of it"
            )
        raise TeacherUnavailableError(
            f"the teacher server was not ready after {self.ready_seconds:g} seconds; its last "
            f"words:\n{self._tail()}",
            where="quickstart",
            fix=f"see {self.log} for all of it",
        )

    def _tail(self) -> str:
        lines = self.log.read_text(encoding="utf-8", errors="replace").splitlines()
        return "\n".join(lines[-LOG_LINES:]) or "(none)"
