"""A child process in which a task's code runs, as the trainer sees it: started, asked, ended,
started again."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from teacher_proto.errors import ConfigurationError
from teacher_proto.processes.confinement import child_environment

from student_trainer.tasks import Task, Verdict
from student_trainer.tasks.judgement import Judgement, failed
from student_trainer.verification.inside import MAX_OUTPUT, OUT_OF_MEMORY, TOO_MUCH_OUTPUT
from student_trainer.verification.lines import MAX_ANSWER, LineError, exchange, pack

# Seconds for the tasks to be prepared, and between a start that failed and the next.
START_SECONDS, PAUSE_SECONDS = 120.0, 30.0
# Seconds that a process which has closed its socket takes to be gone.
END_SECONDS = 10.0
# Seconds between two looks whether it is.
LOOK_SECONDS = 0.005
NETWORKS = ("of its own", "refused")


class ChildProcess:
    """One process. Its methods are called by one thread at a time, but for ``interrupt``.

    A process ends with the thread that started it. With it end those that it started, unless they
    have left its session.

    Attributes:
        starts: how many times it was started.
    """

    def __init__(
        self,
        module: str,
        tasks: Mapping[str, Task],
        folders: Sequence[Path],
        *,
        what: str,
        memory_bytes: int,
        longest: int = MAX_ANSWER,
    ) -> None:
        """
        Args:
            module: what runs in it.
            tasks: those whose code runs in it, by name.
            folders: where modules of a user's own are.
            what: the process, for errors.
            memory_bytes: of address space, beside what it has once its tasks are ready.
            longest: bytes of the longest answer.
        """
        self.starts = 0
        self._module, self._what, self._longest = module, what, longest
        self._introduction = {
            "tasks": {
                name: task.for_a_process().model_dump(mode="json") for name, task in tasks.items()
            },
            "folders": [str(folder) for folder in folders],
            "memory_bytes": memory_bytes,
        }
        self._memory = memory_bytes
        self._process: subprocess.Popen[bytes] | None = None
        self._link: socket.socket | None = None
        self._network = ""
        self._next_start = 0.0
        self._why = ""
        self._closed = threading.Event()
        # Held where a process begins, is killed or is reaped: what is reaped has lent its number.
        self._life = threading.Lock()

    @property
    def running(self) -> int:
        """The number of its last start, from 1; 0 where the process has ended. What an earlier
        start knew is gone."""
        return self.starts if self._link is not None else 0

    def start(self) -> str:
        """Starts the process, unless it runs; returns what it has for a network: ``of its own``
        or ``refused``.

        Raises:
            ConfigurationError: it does not start, or a task cannot be prepared in it.
        """
        if self._link is not None:
            return self._network
        ours, its = socket.socketpair()
        try:
            with its, self._life:
                if self._closed.is_set():
                    raise OSError("the run ends")
                self._process = subprocess.Popen(
                    [sys.executable, "-P", "-m", self._module, str(its.fileno()), str(os.getpid())],
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
                raise OSError(f"it {self._ended()[1]}")
            if "error" in said:
                raise OSError(str(said["error"]))
            if said.get("network") not in NETWORKS:
                raise OSError("it gave another answer")
            self._network = str(said["network"])
            self.starts += 1
            return self._network
        except (OSError, LineError) as error:
            self._end()
            ours.close()
            slow = isinstance(error, TimeoutError)
            why = f"it was not ready within {START_SECONDS:g} s" if slow else str(error)
            self._why = f"{self._what} does not start: {why}"
            self._next_start = time.monotonic() + PAUSE_SECONDS
            raise ConfigurationError(
                self._why,
                where="tasks",
                fix="mend what it says, or use tasks that judge nothing",
            ) from error

    def ask(
        self, message: Mapping[str, Any], seconds: float, *, doing: str, insist: bool = False
    ) -> Mapping[str, Any] | Judgement:
        """The answer to a message. Whatever happens to the process, there is an answer or a failed
        judgement.

        Args:
            seconds: that it may take.
            doing: what the process does with it, for the reason of a failure.
            insist: where no process can be started, waits and tries once more, unless the run
                ends.

        Raises:
            ConfigurationError: with ``insist``, there is no process the second time either.
        """
        try:
            line = pack(dict(message))
        except (TypeError, ValueError) as error:
            return failed("raised", f"JSON cannot say the row of its prompt: {error}")
        missing = self._started()
        if missing is not None and insist and not self._closed.is_set():
            self._closed.wait(max(0.0, self._next_start - time.monotonic()))
            missing = self._started_or_closed()
        if missing is not None:
            return missing
        assert self._link is not None, "it is started"
        try:
            said = exchange(self._link, line, seconds, self._longest)
        except TimeoutError:
            self._end()
            return failed("time", f"{doing} took longer than {seconds:g} s")
        except (LineError, OSError) as error:
            self._end()
            return failed("raised", str(error))
        if said is None:
            code, how = self._ended()
            if code == OUT_OF_MEMORY:
                return failed("memory", f"{doing} took more than {self._memory} bytes")
            if code == TOO_MUCH_OUTPUT:
                return failed("output", f"{doing} printed {MAX_OUTPUT} bytes and more")
            return failed("ended", f"the process {how}")
        if "raised" in said:
            return failed("raised", str(said["raised"]))
        return said

    def interrupt(self) -> None:
        """Ends the process for good, from any thread; who waits for a judgement of it gets a
        failed one. ``close`` is still to be called."""
        self._closed.set()
        with self._life:
            self._kill()

    def close(self) -> None:
        """Ends the process for good; nothing of it is left."""
        self.interrupt()
        self._end()

    def _started(self) -> Judgement | None:
        """Starts the process where it has ended; a failure where that cannot be."""
        if self._closed.is_set():
            return failed("start", "the run ends")
        if self._link is not None:
            return None
        if time.monotonic() < self._next_start:
            return failed("start", self._why)
        try:
            self.start()
        except ConfigurationError as error:
            return failed("start", error.what)
        return None

    def _started_or_closed(self) -> Judgement | None:
        """Starts the process; a failure where the run ends meanwhile."""
        try:
            self.start()
        except ConfigurationError:
            if not self._closed.is_set():
                raise
            return failed("start", "the run ends")
        return None

    def _ended(self) -> tuple[int | None, str]:
        """Ends a process that has closed its socket; returns its exit code, and how it ended."""
        assert self._process is not None, "it was started"
        by_itself = _is_gone(self._process.pid, END_SECONDS)
        code = self._end()
        if not by_itself or code is None:
            return None, "closed its socket"
        if code < 0:
            with contextlib.suppress(ValueError):
                return code, f"was ended by {signal.Signals(-code).name}"
        return code, f"ended with exit code {code}"

    def _end(self) -> int | None:
        """Ends the process, those that it started, and the connection; returns its exit code, or
        None where there is none."""
        code = None
        with self._life:
            self._kill()
            if self._process is not None:
                code = self._process.wait()
                self._process = None
        if self._link is not None:
            self._link.close()
            self._link = None
        return code

    def _kill(self) -> None:
        """Its whole group, which is its own, while it is not reaped."""
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)


def _is_gone(process: int, seconds: float) -> bool:
    """Whether a child that is not reaped ends within so many seconds. It is not reaped here, so
    that its number stays that of its group."""
    end = time.monotonic() + seconds
    while os.waitid(os.P_PID, process, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
        if time.monotonic() >= end:
            return False
        time.sleep(LOOK_SECONDS)
    return True


def judgement_of(said: Mapping[str, Any]) -> Judgement:
    """A judgement of an answer, which is checked: what a task runs could have written it."""
    try:
        verdict = Verdict(said.get("score"), said["reason"], said["values"])
    except (KeyError, TypeError, ValueError, OverflowError):
        return failed("raised", "an answer that is no verdict")
    if verdict.score is None:
        return failed("unjudged", verdict.reason)
    values = {name: float(value) for name, value in verdict.values.items()}
    return Judgement(float(verdict.score), values=values)
