"""The fork server as the server sees it: started, watched, started again, and asked.

``ForkServer`` here starts ``inside.fork_server``. The server itself never forks: it has threads,
and a fork would copy none of them.
"""

from __future__ import annotations

import contextlib
import logging
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from teacher_proto.errors import ConfigurationError, OverloadedError, TeacherUnavailableError
from teacher_proto.processes.confinement import child_environment

from teacher_server.frames import Frame, FrameError, pack, receive, send
from teacher_server.workers.inside.vocabularies import TeacherFile

log = logging.getLogger(__name__)

MODULE = "teacher_server.workers.inside.fork_server"
# Seconds for the teachers' tokenizers to be read, and for everything else that is asked.
START_SECONDS, ANSWER_SECONDS = 600.0, 120.0
# Seconds between one start and the next: at first, and at most.
FIRST_PAUSE, LONGEST_PAUSE = 0.2, 30.0
RETRY_HINT, BUSY_HINT = 1.0, 5.0


@dataclass(frozen=True)
class Side:
    """What is known of a teacher's vocabulary.

    Attributes:
        number: teachers of equal vocabularies have the same.
        ordinary_hash: ``Vocabulary.ordinary_hash``; empty where no other tokenizer can be
            realigned to it.
    """

    number: int
    ordinary_hash: str


class ForkServer:
    """The process that students' processes are forked from. Thread-safe.

    Attributes:
        sides: by the teacher's name.
    """

    def __init__(self, teachers: Mapping[str, TeacherFile]) -> None:
        self._teachers = teachers
        self._control: socket.socket | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._asking = threading.Lock()
        self._closed = threading.Event()
        self.sides: dict[str, Side] = {}

    def start(self) -> None:
        """Returns once the teachers' tokenizers are read, which takes seconds.

        Raises:
            ConfigurationError: the process does not start.
        """
        try:
            self._start()
        except (OSError, FrameError) as error:
            raise ConfigurationError(
                f"the process for students' tokenizers does not start: {error}",
                where="tokenizers",
                fix="look at what it wrote to the log before this",
            ) from error
        threading.Thread(target=self._watch, name="fork server", daemon=True).start()

    def close(self) -> None:
        """Ends the process and its children."""
        self._closed.set()
        if self._process is not None:
            self._process.kill()  # who waits for an answer of it is told so
        with self._asking:
            control, self._control = self._control, None
            if control is not None:
                control.close()
        if self._process is not None:
            self._process.wait()

    def fork(self, end: socket.socket, *, memory_bytes: int, niceness: int) -> int:
        """Forks a process that answers on ``end``; returns its number.

        Raises:
            OverloadedError: the system has no process or descriptor to give.
            TeacherUnavailableError: the process is being started again.
        """
        frame = Frame("fork", {"memory_bytes": memory_bytes, "niceness": niceness})
        answer = self._ask(frame, end.fileno())
        if "error" in answer.header:
            why = answer.text("error", 200)
            log.error("no process can be forked for a student's tokenizer: %s", why)
            raise OverloadedError(
                f"no process can be started for the tokenizer: {why}",
                where="tokenizers",
                fix="try again; or raise the limits of processes, memory and open files that "
                "the server runs under",
                retry_after=BUSY_HINT,
            )
        return answer.integer("pid", 1)

    def end(self, pid: int) -> str:
        """Ends a forked process, if it still runs; returns the name of the signal that ended
        it, "exit N", "memory", or "unknown".

        Raises:
            TeacherUnavailableError: its parent is gone, and the process with it.
        """
        return self._ask(Frame("end", {"pid": pid})).text("how", 100)

    @property
    def pid(self) -> int:
        """Of the process; 0 where there is none."""
        return 0 if self._process is None else self._process.pid

    def _ask(self, frame: Frame, descriptor: int | None = None) -> Frame:
        with self._asking:
            control = self._control
            try:
                if control is None:
                    raise OSError("it is not running")
                if descriptor is None:
                    send(control, frame)
                else:
                    socket.send_fds(control, [pack(frame)], [descriptor])
                answer = receive(control)
                if answer is None or answer.kind != frame.kind:
                    raise OSError("it gave no answer")
                return answer
            except (OSError, FrameError) as error:
                self._drop(control)
                raise TeacherUnavailableError(
                    "the process for students' tokenizers is being started again",
                    fix="try again",
                    reason="TOKENIZERS_RESTARTING",
                    retry_after=RETRY_HINT,
                ) from error

    def _drop(self, control: socket.socket | None) -> None:
        """A process that does not answer as it should is ended; ``_watch`` starts another."""
        if control is not None and control is self._control:
            self._control = None
            control.close()
            if self._process is not None:
                self._process.kill()

    def _start(self) -> None:
        ours, its = socket.socketpair()
        with its:
            self._process = process = subprocess.Popen(
                [
                    sys.executable,
                    "-P",
                    "-m",
                    MODULE,
                    str(its.fileno()),
                ],
                pass_fds=[its.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                env=child_environment(),
                start_new_session=True,
            )
        threading.Thread(target=_log_lines, args=(process,), daemon=True).start()
        try:
            ours.settimeout(START_SECONDS)
            send(ours, self._introduction())
            answer = receive(ours)
            if answer is None or answer.kind != "teachers":
                raise OSError("it ended, or gave another answer")
            self.sides = {
                one["name"]: Side(one["side"], one["ordinary_hash"])
                for one in answer.header["teachers"]
            }
            ours.settimeout(ANSWER_SECONDS)
        except BaseException:
            ours.close()
            process.kill()
            raise
        self._control = ours

    def _introduction(self) -> Frame:
        files = {one.hash: one.file for one in self._teachers.values()}
        teachers = [
            {
                "name": name,
                "hash": one.hash,
                "file": one.hash,
                "named_specials": {str(token): int(r) for token, r in one.named_specials.items()},
            }
            for name, one in self._teachers.items()
        ]
        arrays = {hash_: np.frombuffer(file.encode(), np.uint8) for hash_, file in files.items()}
        return Frame("teachers", {"teachers": teachers}, arrays)

    def _watch(self) -> None:
        """Starts the process again whenever it has ended."""
        pause, started = FIRST_PAUSE, time.monotonic()
        while True:
            if self._process is not None:
                self._process.wait()
            if self._closed.is_set():
                return
            log.error("the process for students' tokenizers ended; it is started again")
            with self._asking:
                self._drop(self._control)
            pause = FIRST_PAUSE if time.monotonic() > started + LONGEST_PAUSE else pause * 2
            if self._closed.wait(min(pause, LONGEST_PAUSE)):
                return
            started = time.monotonic()
            with contextlib.suppress(OSError, FrameError):
                self._start()
            if self._closed.is_set():  # closed meanwhile
                self.close()


def _log_lines(process: subprocess.Popen[bytes]) -> None:
    """What the process writes to its standard error is a line of the log each."""
    assert process.stderr is not None
    with process.stderr:
        for line in process.stderr:
            log.warning("the process for students' tokenizers: %s", line.decode(errors="replace"))
