"""The process that judges responses, one after the other.

``python -m student_trainer.verification.inside DESCRIPTOR PARENT`` is for the trainer alone to
call. It reads the tasks from the socket, leaves the network, prepares them, confines itself and
answers until the socket closes. Nothing here is unpickled.

    {"tasks": ..., "folders": ..., "memory_bytes": ...}  ->  {"network": ...} or {"error": ...}
    {"task": NAME, "row": ..., "response": ...}          ->  {"score": ..., "reason": ..., "values":
                                                              ...} or {"raised": ...}
"""

from __future__ import annotations

import errno
import logging
import os
import socket
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from teacher_proto.errors import ConfigurationError, LsmError, first_line
from teacher_proto.processes.confinement import (
    MAX_DESCRIPTORS,
    confine,
    ignore_the_terminal,
    leave_the_network,
    refuse_sockets,
)

from student_trainer.settings.dotted import importable_from, load_dotted
from student_trainer.tasks import TASKS, Task, Verdict
from student_trainer.verification.lines import MAX_ANSWER, pack, unpack

Handler = Callable[[dict[str, Any]], dict[str, Any]]
# Bytes that answering one message may print.
MAX_OUTPUT = 1 << 20
# With what the process ends where a message took too much.
OUT_OF_MEMORY, TOO_MUCH_OUTPUT = 71, 72
# With what the dynamic linker refuses a library for which there is no memory (glibc).
UNMAPPED = "failed to map segment from shared object"
# Characters of a reason, which may quote a response.
LONGEST = 500


def serve(
    handler: Callable[[Mapping[str, Task]], Handler],
    longest: int = MAX_ANSWER,
    descriptors: int = MAX_DESCRIPTORS,
) -> int:
    """Answers until the trainer closes the connection; returns the exit code.

    Args:
        handler: what answers messages, of the tasks that are ready.
        longest: bytes of the longest answer.
        descriptors: files that may be open.
    """
    ignore_the_terminal()
    link, parent = socket.socket(fileno=int(sys.argv[1])), int(sys.argv[2])
    with link.makefile("rb") as lines:
        introduction = unpack(lines.readline())
        network = "of its own" if leave_the_network() else "refused"
        if network == "refused":
            refuse_sockets()
        logging.disable()  # a log of responses is nobody's
        output = os.memfd_create("output")
        os.dup2(output, 1)
        os.dup2(output, 2)
        try:
            tasks = prepared(introduction["tasks"], introduction["folders"])
            most = max(task.file_bytes for task in tasks.values())
            confine(parent, introduction["memory_bytes"], 0, max(most, MAX_OUTPUT), descriptors)
        except (LsmError, OSError) as error:
            link.sendall(pack({"error": _short(str(error))}))
            return 1
        _forget(output)
        link.sendall(pack({"network": network}))
        handle = handler(tasks)
        for line in lines:
            link.sendall(answer(handle, line, output, longest))
    return 0


def prepared(described: Mapping[str, Mapping[str, Any]], folders: list[str]) -> dict[str, Task]:
    """The tasks by name, ready to judge.

    Args:
        described: their settings.
        folders: where modules of a user's own are.

    Raises:
        LsmError: a task is not there, or cannot be prepared.
    """
    found: dict[str, Task] = {}
    with importable_from(map(Path, folders)):
        for name, settings in described.items():
            try:
                kind = settings["kind"]
                chosen = TASKS.get(kind) or load_dotted(kind, Task, f"tasks.{name}.kind")
                found[name] = chosen.model_validate(settings)
                found[name].prepare()
            except LsmError:
                raise
            except Exception as error:  # of a class of a user's own
                raise ConfigurationError(
                    f"preparing it raises {_named(error)}",
                    where=f"tasks.{name}",
                    fix="mend its method `prepare`, or its settings; variables of the trainer's "
                    "environment do not reach this process",
                ) from error
    return found


def answer(handle: Handler, line: bytes, output: int, longest: int) -> bytes:
    """The answer to a line. Ends the process where it took more memory, or printed more, than it
    may.

    Args:
        output: where what is printed goes.
        longest: bytes of the longest answer.
    """
    try:
        said = _said(handle, unpack(line), longest)
    except _OutOfMemoryError:
        os._exit(OUT_OF_MEMORY)
    if _printed(output) >= MAX_OUTPUT:
        os._exit(TOO_MUCH_OUTPUT)
    _forget(output)
    return said


class _OutOfMemoryError(Exception):
    pass


def is_of_memory(error: BaseException) -> bool:
    """Whether what was raised says that memory was too little: Python's own error, or the
    system's, also where it cannot map a library."""
    if isinstance(error, OSError) and error.errno == errno.ENOMEM:
        return True
    unmapped = isinstance(error, OSError | ImportError) and UNMAPPED in str(error)
    return isinstance(error, MemoryError) or unmapped


def _said(handle: Handler, message: dict[str, Any], longest: int) -> bytes:
    try:
        said = pack(handle(message))
    except BaseException as error:  # also SystemExit of a task's own
        if is_of_memory(error):
            raise _OutOfMemoryError from error
        return pack({"raised": _short(_named(error))})
    if len(said) > longest:
        return pack({"raised": f"the answer has {len(said)} bytes"})
    return said


def judging(tasks: Mapping[str, Task]) -> Handler:
    """Answers with the verdicts of tasks."""

    def handle(message: dict[str, Any]) -> dict[str, Any]:
        return described(tasks[message["task"]].verify(message["row"], message["response"]))

    return handle


def described(verdict: Any) -> dict[str, Any]:
    """A verdict as JSON values. Raises TypeError for what is none."""
    if not isinstance(verdict, Verdict):
        raise TypeError(f"it returned a {type(verdict).__name__}, which is no Verdict")
    return {
        "score": None if verdict.score is None else float(verdict.score),
        "reason": _short(verdict.reason),
        "values": {name: float(value) for name, value in verdict.values.items()},
    }


def _named(error: BaseException) -> str:
    return f"{type(error).__name__}: {first_line(error)}"


def _printed(output: int) -> int:
    """Bytes that were printed."""
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except OSError:
        return MAX_OUTPUT
    return os.fstat(output).st_size


def _forget(output: int) -> None:
    os.ftruncate(output, 0)
    os.lseek(output, 0, os.SEEK_SET)


def _short(text: str) -> str:
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}..."


if __name__ == "__main__":
    sys.exit(serve(judging))
