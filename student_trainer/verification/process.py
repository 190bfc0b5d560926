"""A process that judges, as the trainer sees it: started, asked, ended, started again."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from teacher_proto.errors import ConfigurationError
from teacher_proto.processes.confinement import child_environment

from student_trainer.tasks import Row, Task
from student_trainer.verification.inside import MAX_OUTPUT, OUT_OF_MEMORY, TOO_MUCH_OUTPUT
from student_trainer.verification.judgement import Judgement, failed
from student_trainer.verification.lines import LineError, exchange, pack

MODULE = "student_trainer.verification.inside"
# Seconds for the tasks to be prepared, and between a start that failed and the next.
START_SECONDS, PAUSE_SECONDS = 120.0, 30.0
# Seconds that a process which has closed its socket takes to be gone.
END_SECONDS = 10.0
NETWORKS = ("of its own", "refused")


class VerifierProcess:
    """One process. Its methods are called by one thread at a time, but for ``close``.

    A process ends with the thread that started it.
    """

    def __init__(
        self,
        tasks: Mapping[str, Task],
        folders: Sequence[Path],
        *,
        seconds: float,
        memory_bytes: int,
    ) -> None:
        """
        Args:
            tasks: those that it judges, by name.
            folders: where modules of a user's own are.
            seconds: that one response may take.
            memory_bytes: of address space, beside what it has once its tasks are ready.
        """
        self._introduction = {
            "tasks": {name: task.model_dump(mode="json") for name, task in tasks.items()},
            "folders": [str(folder) for folder in folders],
            "memory_bytes": memory_bytes,
        }
        self._seconds, self._memory = seconds, memory_bytes
        self._process: subprocess.Popen[bytes] | None = None
        self._link: socket.socket | None = None
        self._next_start = 0.0
        self._why = ""
        self._closed = False

    def start(self) -> str:
        """Starts the process, unless it runs; returns what it has for a network: ``of its own``
        or ``refused``.

        Raises:
            ConfigurationError: it does not start, or a task cannot be prepared in it.
        """
        ours, its = socket.socketpair()
        try:
            with its:
                self._process = subprocess.Popen(
                    [sys.executable, "-P", "-m", MODULE, str(its.fileno()), str(os.getpid())],
                    pass_fds=[its.fileno()],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                    env=child_environment(),
                    start_new_session=True,
                )
            self._link = ours
            said = exchange(ours, pack(self._introduction), START_SECONDS)
            if said is None:
                raise OSError(f"it {self._ended()}")
            if "error" in said:
                raise OSError(str(said["error"]))
            if said.get("network") not in NETWORKS:
                raise OSError("it gave another answer")
            return str(said["network"])
        except (OSError, LineError) as error:
            self._end()
            ours.close()
            slow = isinstance(error, TimeoutError)
            why = f"it was not ready within {START_SECONDS:g} s" if slow else str(error)
            raise ConfigurationError(
                f"the process that judges responses does not start: {why}",
                where="tasks",
                fix="mend what it says, or use tasks that judge nothing",
            ) from error

    def judge(self, task: str, row: Row, response: str) -> Judgement:
        """Judges a response. Whatever it does, there is a judgement."""
        try:
            message = pack({"task": task, "row": row, "response": response})
        except (TypeError, ValueError) as error:
            return failed("raised", f"JSON cannot say the row of its prompt: {error}")
        if (missing := self._started()) is not None:
            return missing
        assert self._link is not None, "it is started"
        try:
            said = exchange(self._link, message, self._seconds)
        except TimeoutError:
            self._end()
            return failed("time", f"it was not judged within {self._seconds:g} s")
        except (LineError, OSError) as error:
            self._end()
            return failed("raised", str(error))
        if said is None:
            how = self._ended()
            code = None if self._process is None else self._process.poll()
            self._end()
            if code == OUT_OF_MEMORY:
                return failed("memory", f"judging it took more than {self._memory} bytes")
            if code == TOO_MUCH_OUTPUT:
                return failed("output", f"judging it printed {MAX_OUTPUT} bytes and more")
            return failed("ended", f"the process {how}")
        return _judgement(said)

    def close(self) -> None:
        """Ends the process for good; who waits for a judgement of it gets a failed one."""
        self._closed = True
        self._kill()

    def _started(self) -> Judgement | None:
        """Starts the process where it has ended; a failure where that cannot be."""
        if self._closed:
            return failed("start", "the run ends")
        if self._link is not None:
            return None
        if time.monotonic() < self._next_start:
            return failed("start", self._why)
        try:
            self.start()
        except ConfigurationError as error:
            self._why = error.what
            self._next_start = time.monotonic() + PAUSE_SECONDS
            return failed("start", self._why)
        return None

    def _ended(self) -> str:
        """How a process that has closed its socket ended."""
        assert self._process is not None, "it was started"
        try:
            code = self._process.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            return "closed its socket"
        if code < 0:
            with contextlib.suppress(ValueError):
                return f"was ended by {signal.Signals(-code).name}"
        return f"ended with exit code {code}"

    def _end(self) -> None:
        self._kill()
        if self._process is not None:
            self._process.wait()
            self._process = None
        if self._link is not None:
            self._link.close()
            self._link = None

    def _kill(self) -> None:
        process = self._process
        if process is not None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()


def _judgement(said: Mapping[str, Any]) -> Judgement:
    """A judgement of an answer, which is checked: what a task runs could have written it."""
    if "raised" in said:
        return failed("raised", str(said["raised"]))
    score, reason, values = said.get("score"), said.get("reason"), said.get("values")
    numbers = isinstance(values, dict) and all(isinstance(v, float) for v in values.values())
    if not numbers or not isinstance(reason, str):
        return failed("raised", "an answer that is no verdict")
    if score is None:
        return failed("unjudged", reason)
    if not isinstance(score, float) or not 0 <= score <= 1:
        return failed("raised", "an answer that is no verdict")
    return Judgement(score, values=dict(values or {}))
