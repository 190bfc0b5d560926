"""A student's process on the event loop: asked one thing after the other, for many callers."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
from teacher_proto.errors import InvalidRequestError, LsmError, TeacherUnavailableError
from teacher_proto.tokenizer_hash import hash_version

from teacher_server.frames import Frame, FrameError
from teacher_server.lanes import SingleThread
from teacher_server.realign.pair.tokenizer_json import MAX_ID
from teacher_server.workers.inside.errors import WorkerError
from teacher_server.workers.inside.vocabularies import Roles
from teacher_server.workers.room import Room
from teacher_server.workers.worker import Worker

RETRY_HINT = 1.0


@dataclass(frozen=True)
class Facts:
    """What is known of a tokenizer that was opened.

    Attributes:
        hash: its fingerprint.
        ordinary_hash: ``Vocabulary.ordinary_hash``; empty where it was refused.
        vocabulary_size: one above the highest id.
        refusal: why no teacher's rows can be realigned to it; None where they can.
    """

    hash: str
    ordinary_hash: str = ""
    vocabulary_size: int = 0
    refusal: LsmError | None = None


class StudentProcess:
    """One tokenizer's process, which begins with the first message.

    Attributes:
        key: of the tokenizer's file and roles.
        users: how many hold it; while there are any it is kept.
        run: that used it last.
        opening, building: the work that opens it, and that builds the tables with a teacher's
            vocabulary, by that vocabulary's number; done or not.
        teachers: a teacher of each of these vocabularies.
        private_bytes: of memory, when that was last looked at.
        failed: how it ended; None while it has not.
        rows: room for the teacher's rows of the requests that it realigns.
    """

    def __init__(self, key: str, start: Callable[[], Worker], row_bytes: int) -> None:
        self.key = key
        self.users = 0
        self.run = ""
        self.opening: asyncio.Task[Facts] | None = None
        self.building: dict[int, asyncio.Task[None]] = {}
        self.teachers: dict[int, str] = {}
        self.private_bytes = 0
        self.failed: WorkerError | None = None
        self.rows = Room(row_bytes)
        self._start = start
        self._worker: Worker | None = None
        self._closed = False
        self._thread = SingleThread("student")
        self._sessions = 0

    async def ask(self, frame: Frame, seconds: float, *, measure: bool = False) -> Frame:
        """The answer to a message; what was asked before is answered first.

        Args:
            seconds: of a processor that the step may take.
            measure: whether to look at the process's memory after it.

        Raises:
            InvalidRequestError: the tokenizer failed at this step, in a way that is its own.
            TeacherUnavailableError: the process is gone for another reason.
            LsmError: what the step was answered with.
        """
        if self.failed is not None or self._closed:
            raise _lost()
        try:
            return await self._thread.run(partial(self._ask, frame, seconds, measure))
        except WorkerError as error:
            first, self.failed = self.failed is None, self.failed or error
            if first and error.own:
                raise refused(error.what) from None
            raise _lost() from None

    @property
    def useless(self) -> bool:
        """Whether its tokenizer was refused."""
        task = self.opening
        if task is None or not task.done() or task.cancelled():
            return False
        return task.exception() is not None or task.result().refusal is not None

    def notice_end(self) -> None:
        """Notes whether the process has ended while nobody asked it anything."""
        if self.failed is None and self._worker is not None and self._worker.gone:
            self.failed = WorkerError("ended its process while nothing was asked", own=False)

    def next_session(self) -> int:
        """The number of one more request that is realigned."""
        self._sessions += 1
        return self._sessions

    def close(self) -> None:
        """Ends the process at once; from any thread."""
        self._closed = True
        worker = self._worker
        if worker is not None:
            worker.kill()
        self._thread.close()

    def _ask(self, frame: Frame, seconds: float, measure: bool) -> Frame:
        if self._worker is None:
            self._worker = self._start()
        if self._closed:
            self._worker.end()
        answer = self._worker.ask(frame, seconds)
        if measure:
            self.private_bytes = self._worker.private_bytes()
        return answer


async def open_tokenizer(
    process: StudentProcess, file: bytes, roles: Roles, tables: str, seconds: float
) -> Facts:
    """Gives the process its tokenizer.

    Args:
        tables: folder for tables of pairs; empty for none.

    Raises:
        LsmError: the file has no fingerprint; and as ``StudentProcess.ask``.
    """
    frame = Frame(
        "open",
        {"tables": tables, "roles": {str(token): role.name for token, role in roles.items()}},
        {"file": np.frombuffer(file, np.uint8)},
    )
    try:
        answer = await process.ask(frame, seconds, measure=True)
    except LsmError as error:
        notes: list[str] = getattr(error, "__notes__", [])
        if not notes or hash_version(notes[0]) is None:
            raise
        return Facts(notes[0], refusal=error)
    found = answer.text("hash", 100), answer.text("ordinary_hash", 100)
    if None in map(hash_version, found):
        raise FrameError("a fingerprint that is none")
    return Facts(*found, answer.integer("vocabulary_size", 1, MAX_ID))


def refused(what: str) -> InvalidRequestError:
    """The error for a tokenizer that failed; ``what`` goes on from "the tokenizer"."""
    return InvalidRequestError(
        f"the tokenizer {what}",
        where="tokenizer.json",
        fix="give the tokenizer.json that the model was published with; what it may take is "
        "tokenizers.worker_seconds and tokenizers.worker_memory_bytes on the server",
        reason="TOKENIZER_REFUSED",
    )


def _lost() -> TeacherUnavailableError:
    return TeacherUnavailableError(
        "the process of the request's tokenizer ended; it is started again",
        where="tokenizer_hash",
        fix="try again",
        reason="TOKENIZERS_RESTARTING",
        retry_after=RETRY_HINT,
    )
