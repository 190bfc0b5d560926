"""One student's process as the server sees it: a message, then its answer, within a time."""

from __future__ import annotations

import contextlib
import os
import select
import socket
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from teacher_proto.errors import TeacherUnavailableError

from teacher_server.frames import PREFIX, Frame, FrameError, check_prefix, parts, unpack
from teacher_server.workers.forks import ForkServer
from teacher_server.workers.inside.errors import WorkerError, read_error

# Seconds between looks at the clock while an answer is awaited.
POLL_SECONDS = 0.2
# A step may take its seconds of a processor, and, where others have the processor, so many
# times as long by the clock.
PATIENCE = 4.0
# Added to the server's own: an engine on few cores goes first.
NICENESS = 3
# Bytes of an answer, and of a part that is read at once.
MAX_ANSWER_BYTES, PART_BYTES = 1 << 29, 1 << 20
# Bytes of an answer's header: what reads JSON keeps the event loop from its turn meanwhile.
MAX_ANSWER_HEADER_BYTES = 1 << 20
_TICKS = os.sysconf("SC_CLK_TCK")


class Worker:
    """A process with a student's tokenizer. Not for several threads at once.

    Args:
        memory_bytes: of address space that it may take.

    Raises:
        TeacherUnavailableError: no process can be had at the moment.
    """

    def __init__(self, forks: ForkServer, memory_bytes: int) -> None:
        self._forks = forks
        ours, its = socket.socketpair()
        try:
            with its:
                self.pid = forks.fork(its, memory_bytes=memory_bytes, niceness=NICENESS)
        except BaseException:
            ours.close()
            raise
        self._socket: socket.socket | None = ours
        ours.settimeout(POLL_SECONDS)

    def ask(self, frame: Frame, seconds: float) -> Frame:
        """The answer to a message.

        Args:
            seconds: of a processor, at most.

        Raises:
            LsmError: that the process answered with; it runs on.
            WorkerError: it took too long, too much memory, or ended; it is gone.
        """
        if self._socket is None:
            raise WorkerError("has ended", own=False)
        clock = _Clock(self.pid, seconds)
        try:
            for part in parts(frame):  # a file of many megabytes is not copied
                self._send(self._socket, part, clock)
            answer = self._receive(self._socket, clock)
            error = read_error(answer) if answer.kind == "error" else None
        except WorkerError:
            self.end()
            raise
        except FrameError:
            self.end()
            raise WorkerError("gave an answer that is none", own=True) from None
        except OSError:
            raise _failure(self.end()) from None
        if error is not None:
            if isinstance(answer.header.get("hash"), str):
                error.add_note(answer.text("hash", 100))
            raise error
        return answer

    def end(self) -> str:
        """Ends the process; returns how it had ended before (``ForkServer.end``)."""
        ours, self._socket = self._socket, None
        if ours is None:
            return "unknown"
        ours.close()
        try:
            return self._forks.end(self.pid)
        except TeacherUnavailableError:
            return "unknown"

    @property
    def gone(self) -> bool:
        """Whether the process has ended; from any thread."""
        ours = self._socket
        if ours is None:
            return True
        look = select.poll()
        look.register(ours.fileno(), select.POLLRDHUP)
        return bool(look.poll(0))

    def kill(self) -> None:
        """Ends the process at once; from any thread. What it is asked fails then."""
        with contextlib.suppress(TeacherUnavailableError):
            self._forks.end(self.pid)

    def processor_seconds(self) -> float:
        """That the process has used; 0 where it has ended."""
        with contextlib.suppress(OSError):
            # The clock of another process (clock_getcpuclockid(3)).
            return time.clock_gettime((~self.pid << 3) | 2)
        return 0.0

    def private_bytes(self) -> int:
        """Memory that is the process's alone; 0 where it has ended."""
        with contextlib.suppress(OSError, ValueError, IndexError):
            lines = Path(f"/proc/{self.pid}/smaps_rollup").read_text().splitlines()
            private = [line.split()[1] for line in lines if line.startswith("Private_")]
            return 1024 * sum(map(int, private))
        return 0

    def _send(self, to: socket.socket, data: bytes | memoryview, clock: _Clock) -> None:
        view = memoryview(data)
        while view:
            view = view[clock.patiently(partial(to.send, view)) :]

    def _receive(self, of: socket.socket, clock: _Clock) -> Frame:
        parts = [bytearray(PREFIX.size)]
        self._fill(of, memoryview(parts[0]), clock)
        left = check_prefix(bytes(parts[0]), MAX_ANSWER_BYTES, MAX_ANSWER_HEADER_BYTES)
        while left:  # no more memory than has come
            parts.append(bytearray(min(left, PART_BYTES)))
            self._fill(of, memoryview(parts[-1]), clock)
            left -= len(parts[-1])
        return unpack(b"".join(parts))

    def _fill(self, of: socket.socket, into: memoryview, clock: _Clock) -> None:
        while into:
            count = clock.patiently(partial(of.recv_into, into))
            if not count:
                raise OSError("it closed")
            into = into[count:]


class _Clock:
    """The time of one step."""

    def __init__(self, pid: int, seconds: float) -> None:
        self._pid = pid
        self._seconds = seconds
        self._began = self._looked = time.monotonic()
        self._used_before = _used(pid)[0]

    def patiently(self, once: Callable[[], int]) -> int:
        """What ``once`` returns, tried again until there is something, or the time is over.

        Raises:
            WorkerError: it is over.
            OSError: the process has ended.
        """
        while True:
            try:
                result = once()
            except TimeoutError:
                self._check()
                continue
            if time.monotonic() > self._looked + POLL_SECONDS:
                self._check()
            return result

    def _check(self) -> None:
        self._looked = time.monotonic()
        passed = self._looked - self._began
        if passed <= self._seconds:
            return
        used, waits = _used(self._pid)
        starved = used - self._used_before < self._seconds and not waits
        if starved and passed <= PATIENCE * self._seconds:
            return
        raise WorkerError(f"took more than {self._seconds:g} s", own=True, limit=True)


def _used(pid: int) -> tuple[float, bool]:
    """Seconds of a processor that a process has used, and whether it waits for something
    other than a processor."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return 0.0, True
    fields = stat.rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS, fields[0] not in "RD"


def _failure(how: str) -> WorkerError:
    if how == "memory":
        return WorkerError("took more memory than it may", own=True, limit=True)
    if how == "unknown":
        return WorkerError("has ended", own=False)
    # A process that is killed from outside is no fault of the tokenizer.
    return WorkerError(f"ended its process ({how})", own=how not in ("SIGKILL", "SIGTERM"))
