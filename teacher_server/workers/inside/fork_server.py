"""The process that students' processes are forked from.

It has read the teachers' tokenizers, which the processes it forks share, and stays single-
threaded. It obeys the server over a socket and ends when that closes, its children with it.
``python -m teacher_server.workers.inside.fork_server DESCRIPTOR`` is for the server alone to call.

    teachers  the teachers' tokenizers -> what is known of their vocabularies
    fork      a socket, and bounds -> the number of the process that answers on it, or ``error``
    end       ends a process -> how it ended
"""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import socket
import sys

import numpy as np
from teacher_proto.processes.confinement import close_all_but, confine, ignore_the_terminal
from teacher_proto.types import SpecialRole

from teacher_server.frames import PREFIX, Frame, check_prefix, send, unpack
from teacher_server.realign.pair.vocabulary import Vocabulary
from teacher_server.teachers.tokenizer import TextTokenizer
from teacher_server.workers.inside import child
from teacher_server.workers.inside.student import TeacherSide
from teacher_server.workers.inside.vocabularies import TeacherFile, teacher_vocabularies

# Of what a child wrote to its standard error before it ended, in bytes.
LAST_WORDS = 1 << 16
OUT_OF_MEMORY = b"memory allocation of"


class ForkServer:
    """The teachers' tokenizers, and the children."""

    def __init__(self, control: socket.socket) -> None:
        self._control = control
        self._teachers: dict[str, TeacherSide] = {}
        self._errors: dict[int, int] = {}

    def run(self) -> None:
        """Obeys until the server closes the connection."""
        while (received := _receive(self._control)) is not None:
            frame, descriptor = received
            if frame.kind == "teachers":
                send(self._control, self._read_teachers(frame))
                self._prepare()
            elif frame.kind == "fork":
                send(self._control, self._fork(frame, descriptor))
            else:
                send(self._control, self._end(frame.integer("pid", 1)))

    def _read_teachers(self, frame: Frame) -> Frame:
        files = {
            one["name"]: TeacherFile(
                one["hash"],
                frame.array(one["file"], np.uint8, None).tobytes().decode(),
                {int(token): SpecialRole(role) for token, role in one["named_specials"].items()},
            )
            for one in frame.header["teachers"]
        }
        texts: dict[str, TextTokenizer] = {}
        known: list[dict[str, object]] = []
        sides: list[Vocabulary] = []
        for name, vocabulary in teacher_vocabularies(files).items():
            file = files[name]
            if file.hash not in texts:
                texts[file.hash] = TextTokenizer(file.file)
            side = next((i for i, one in enumerate(sides) if one is vocabulary), len(sides))
            if vocabulary is not None and side == len(sides):
                sides.append(vocabulary)
            self._teachers[name] = TeacherSide(
                file.hash, file.file, vocabulary, side, texts[file.hash]
            )
            ordinary = "" if vocabulary is None else vocabulary.ordinary_hash
            known.append({"name": name, "side": side, "ordinary_hash": ordinary})
        return Frame("teachers", {"teachers": known})

    def _prepare(self) -> None:
        """What each child would compute of a teacher's vocabulary by itself; and what is there
        is left alone by the collector, so that the children go on sharing it."""
        for teacher in self._teachers.values():
            if teacher.vocabulary is not None:
                for name in ("rank", "sorted_bytes", "by_bytes", "lengths_list", "special_ids"):
                    getattr(teacher.vocabulary, name)
        gc.collect()
        gc.freeze()

    def _fork(self, frame: Frame, descriptor: int) -> Frame:
        """Where the system has no process or descriptor to give, those that run are kept."""
        memory, niceness = frame.integer("memory_bytes"), frame.integer("niceness", 0, 19)
        if descriptor < 0:
            return Frame("fork", {"error": "no descriptor is left for its socket"})
        opened = [descriptor]
        own = os.getpid()
        try:
            readable, writable = os.pipe()
            opened += [readable, writable]
            os.set_blocking(readable, False)
            os.set_blocking(writable, False)
            pid = os.fork()
        except OSError as error:
            for one in opened:
                os.close(one)
            return Frame("fork", {"error": os.strerror(error.errno or 0)})
        if pid == 0:
            status = 1
            with contextlib.suppress(BaseException):
                os.dup2(writable, 2)
                close_all_but(descriptor)
                confine(own, memory, niceness)
                child.run(socket.socket(fileno=descriptor), self._teachers)
                status = 0
            os._exit(status)
        os.close(descriptor)
        os.close(writable)
        self._errors[pid] = readable
        return Frame("fork", {"pid": pid})

    def _end(self, pid: int) -> Frame:
        errors = self._errors.pop(pid, None)
        if errors is None:  # no child of this process
            return Frame("end", {"how": "unknown"})
        # One that has ended by itself keeps its own status.
        os.kill(pid, signal.SIGKILL)
        _, status = os.waitpid(pid, 0)
        last = b""
        with contextlib.suppress(BlockingIOError):
            last = os.read(errors, LAST_WORDS)
        os.close(errors)
        code = os.waitstatus_to_exitcode(status)
        how = f"exit {code}" if code >= 0 else signal.Signals(-code).name
        return Frame("end", {"how": "memory" if OUT_OF_MEMORY in last else how})


def _receive(control: socket.socket) -> tuple[Frame, int] | None:
    """A message and the descriptor that came with it, or -1; None at the end."""
    prefix, descriptors, _, _ = socket.recv_fds(control, PREFIX.size, 1)
    if len(prefix) < PREFIX.size:
        return None
    data = bytearray(prefix)
    length = PREFIX.size + check_prefix(prefix)
    while len(data) < length:
        part = control.recv(min(length - len(data), 1 << 20))
        if not part:
            return None
        data += part
    return unpack(data), descriptors[0] if descriptors else -1


def main() -> int:
    """Runs until the server closes the connection; returns the exit code."""
    ignore_the_terminal()
    with contextlib.suppress(ConnectionError):
        ForkServer(socket.socket(fileno=int(sys.argv[1]))).run()
    return 0


if __name__ == "__main__":
    sys.exit(main())
