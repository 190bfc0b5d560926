"""A student's process on the event loop: asked one thing after the other, for many callers."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from teacher_proto.errors import InvalidRequestError, LsmError, TeacherUnavailableError
from teacher_proto.tokenizer_hash import hash_version

from teacher_server.failures import as_exception, is_ending
from teacher_server.frames import Frame, FrameError
from teacher_server.realign.pair.tokenizer_json import MAX_ID
from teacher_server.workers.inside.errors import WorkerError
from teacher_server.workers.inside.vocabularies import Roles
from teacher_server.workers.memory import LEAST_BYTES
from teacher_server.workers.room import Room
from teacher_server.workers.turns import Turn
from teacher_server.workers.worker import Worker

RETRY_HINT = 1.0
# Memory is looked at after these messages, and after others when it was not for so many seconds.
MEASURED, MEASURE_SECONDS = ("open", "pair"), 1.0


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
        name: of the process: the key, and the run that has it for itself, or None.
        callers: how often each run holds it; while any does it is kept.
        steps: that are waited for or going on, whether their callers have left or not.
        left_at: when the last caller left while there were steps, by the monotonic clock.
        file_bytes: of the tokenizer's file.
        run: that it counts for: the first of those that hold it.
        opening, building: the work that opens it, and that builds the tables with a teacher's
            vocabulary, by that vocabulary's number; done or not.
        teachers: a teacher of each vocabulary with which there are tables.
        expected_bytes: of memory.
        private_bytes: of memory, when that was last looked at.
        failed: how it ended; None while it has not.
        blamed: the run whose request made it fail, or None for the tokenizer itself.
        asked: whether anything but its opening and tables was ever asked.
        rows: room for the teacher's rows of the requests that it realigns.
    """

    def __init__(
        self,
        name: tuple[str, str | None],
        start: Callable[[], Worker],
        file_bytes: int,
        expected_bytes: int,
        row_bytes: int,
    ) -> None:
        self.name = name
        self.key = name[0]
        self.callers: Counter[str] = Counter()
        self.steps = 0
        self.left_at = 0.0
        self.file_bytes = file_bytes
        self.run = ""
        self.opening: asyncio.Task[Facts] | None = None
        self.building: dict[int, asyncio.Task[None]] = {}
        self.teachers: dict[int, str] = {}
        self.expected_bytes = expected_bytes
        self.private_bytes = 0
        self.failed: WorkerError | None = None
        self.blamed: str | None = None
        self.asked = False
        self.rows = Room(row_bytes)
        self._start = start
        self._worker: Worker | None = None
        self._closed = threading.Event()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="student")
        self._sessions = 0
        self._measured = 0.0

    async def ask(
        self, frame: Frame, seconds: float, *, run: str | None = None, turn: Turn | None = None
    ) -> Frame:
        """The answer to a message; what was asked before is answered first. A caller that is
        cancelled leaves when the step that was begun for it has ended.

        Args:
            seconds: of a processor that the step may take.
            run: whose request it is; None for what is asked of the tokenizer itself.
            turn: in which it is asked; what it uses is noted there.

        Raises:
            InvalidRequestError: the tokenizer failed at this step, in a way that is its own.
            TeacherUnavailableError: the process is gone for another reason.
            LsmError: what the step was answered with.
        """
        if self.failed is not None or self._closed.is_set():
            raise lost()
        self.asked = self.asked or run is not None
        begun = self._thread.submit(self._guarded, frame, seconds, turn or Turn("", False))
        try:
            return await asyncio.wrap_future(begun)
        except asyncio.CancelledError:
            if not begun.cancelled():
                ended = asyncio.wrap_future(begun)
                await asyncio.wait([ended])
                error = ended.exception()
                if isinstance(error, WorkerError):
                    self._note(error, run)
            raise
        except WorkerError as error:
            if self._note(error, run) and error.own:
                raise (refused(error.what) if run is None else too_much(error)) from None
            raise lost() from None

    def _note(self, error: WorkerError, run: str | None) -> bool:
        """Whether this is how the process ended."""
        if self.failed is not None:
            return False
        self.failed, self.blamed = error, run
        return True

    @property
    def users(self) -> int:
        """How many hold it, and how many steps are going on."""
        return self.callers.total() + self.steps

    @property
    def charged_bytes(self) -> int:
        """Of memory that it counts for: at least what is expected, until its tables are built."""
        least = LEAST_BYTES if self.teachers else self.expected_bytes
        return max(self.private_bytes, least)

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
        self._closed.set()
        worker = self._worker
        if worker is not None:
            worker.kill()
        self._thread.shutdown(wait=False)

    def _guarded(self, frame: Frame, seconds: float, turn: Turn) -> Frame:
        """In the process's thread: whatever fails arrives as an ``Exception``."""
        try:
            return self._ask(frame, seconds, turn)
        except BaseException as error:
            if is_ending(error):
                raise
            raise as_exception(error) from None

    def _ask(self, frame: Frame, seconds: float, turn: Turn) -> Frame:
        if self._closed.is_set():
            raise WorkerError("has ended", own=False)
        if self._worker is None:
            self._worker = self._start()
        if self._closed.is_set():  # meanwhile
            self._worker.end()
        began, before = time.monotonic(), self._worker.processor_seconds()
        try:
            answer = self._worker.ask(frame, seconds)
        finally:
            after = self._worker.processor_seconds()
            # Of a process that has ended nothing is known but how long it took.
            turn.used += after - before if after else time.monotonic() - began
        if frame.kind in MEASURED or time.monotonic() > self._measured + MEASURE_SECONDS:
            self.private_bytes = self._worker.private_bytes() or self.private_bytes
            self._measured = time.monotonic()
        return answer


async def open_tokenizer(
    process: StudentProcess, file: bytes, roles: Roles, tables: str, seconds: float, turn: Turn
) -> Facts:
    """Gives the process its tokenizer.

    Args:
        tables: folder for tables of pairs; empty for none.
        turn: in which it is opened.

    Raises:
        LsmError: the file has no fingerprint; and as ``StudentProcess.ask``.
    """
    frame = Frame(
        "open",
        {"tables": tables, "roles": {str(token): role.name for token, role in roles.items()}},
        {"file": np.frombuffer(file, np.uint8)},
    )
    try:
        answer = await process.ask(frame, seconds, turn=turn)
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


def too_much(error: WorkerError) -> InvalidRequestError:
    """The error for a request at which a process failed."""
    if not error.limit:
        return refused(error.what)
    return InvalidRequestError(
        f"the request {error.what} in its tokenizer's process",
        where="tokenizer_hash",
        fix="send less text, or fewer tokens, in one request; tokenizers.worker_memory_bytes on "
        "the server bounds the memory",
        reason="LIMIT_EXCEEDED",
    )


def lost() -> TeacherUnavailableError:
    """The error for what was asked of a process that is gone."""
    return TeacherUnavailableError(
        "the process of the request's tokenizer ended; it is started again",
        where="tokenizer_hash",
        fix="try again",
        reason="TOKENIZERS_RESTARTING",
        retry_after=RETRY_HINT,
    )
