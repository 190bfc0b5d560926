"""The students' processes: one per tokenizer, as many as memory allows."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import os
import time
from collections import Counter, OrderedDict
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

from teacher_proto.errors import LsmError, OverloadedError, TeacherUnavailableError

from teacher_server.frames import Frame, FrameError
from teacher_server.lanes import SingleThread
from teacher_server.settings.tokenizers import TokenizerSettings
from teacher_server.workers.failures import FAILURE_SECONDS, MAX_FAILURES, Failures
from teacher_server.workers.forks import ForkServer
from teacher_server.workers.inside.errors import WorkerError
from teacher_server.workers.inside.vocabularies import Roles
from teacher_server.workers.memory import Expected, in_use, to_end, to_end_for
from teacher_server.workers.process import Facts, StudentProcess, open_tokenizer, refused
from teacher_server.workers.tables import to_forget
from teacher_server.workers.turns import Turns, Use
from teacher_server.workers.worker import Worker

log = logging.getLogger(__name__)

T = TypeVar("T")
# Tokenizers that are opened, or whose tables are built, at once.
BUILDS = 2
# More of them at once whose files have fewer bytes, of runs that have used little time.
QUICK_BUILDS, SMALL_FILE = 2, 1 << 20
# The part of a process's memory for the requests that it realigns, each by what it takes.
ROWS_SHARE = 2
# Seconds that a tokenizer waits for memory that others are using, at most.
ROOM_SECONDS = 30.0
RETRY_HINT = 5.0
# A step goes on for so many seconds when all who wanted something of its process have left.
ABANDONED_SECONDS = 2.0
# A run whose request took so many seconds in a process that others use gets one of its own.
LONG_STEP_SECONDS = 2.0


def key_of(file_sha256: str, roles: Roles) -> str:
    """The key of a tokenizer's process: of its file, and the roles given to its special ids."""
    named = sorted((token, int(role)) for token, role in roles.items())
    return hashlib.sha256(repr((file_sha256, named)).encode()).hexdigest()


@dataclass(eq=False)
class _Waiter:
    """A run that waits for memory for a process of this name."""

    name: tuple[str, str | None]
    run: str
    file_bytes: int
    ready: asyncio.Future[StudentProcess]


class Pool:
    """Processes by their names: a tokenizer's is shared by its runs, but for those whose requests
    failed in it or went on for long. Idle ones are ended where all together would take more than
    ``max_memory_bytes`` (``memory`` has the rules).

    Args:
        tables: key of a process -> its folder for tables of pairs; empty for none.
    """

    def __init__(
        self, forks: ForkServer, settings: TokenizerSettings, tables: Callable[[str], str]
    ) -> None:
        self._settings = settings
        self._tables = tables
        self._start = partial(Worker, forks, settings.worker_memory_bytes)
        self._processes: OrderedDict[tuple[str, str | None], StudentProcess] = OrderedDict()
        self._expected = Expected(min(settings.worker_memory_bytes, settings.max_memory_bytes))
        self._waiting: list[_Waiter] = []
        cores = max(2, os.cpu_count() or 2)
        use = Use()
        self._turns = Turns(cores, per_run=cores // 2, quick=cores, use=use)
        # A run prepares one tokenizer at once, so that it leaves room for the others.
        self._builds = Turns(BUILDS, per_run=1, quick=QUICK_BUILDS, use=use)
        self._failures = Failures()
        self._ending = SingleThread("ending")
        self._background: set[asyncio.Task[Any]] = set()
        self._closed = False

    @contextlib.asynccontextmanager
    async def hold(self, key: str, run: str, file_bytes: int) -> AsyncIterator[StudentProcess]:
        """The tokenizer's process, which is kept meanwhile.

        Args:
            file_bytes: of its file.

        Raises:
            InvalidRequestError: it failed too often, or this run's requests did in it.
            OverloadedError: there is no memory for one more.
            TeacherUnavailableError: the pool is closed.
        """
        self._check_failures(key, run)
        name = key, run if self._failures.is_apart(key, run) else None
        process = self._live(name)
        if process is None:
            process = await self._room_for(name, run, file_bytes)
        else:
            self._enter(process, run)
        try:
            yield process
        finally:
            self._leave(process, run)

    async def open(
        self, process: StudentProcess, run: str, roles: Roles, read: Callable[[], bytes]
    ) -> Facts:
        """What is known of the tokenizer of a process that is held, which is opened first.

        Args:
            run: in whose turn it is opened.
            read: its file; called in a thread where it is opened.

        Raises:
            LsmError: see ``open_tokenizer``, and what ``read`` raises.
        """

        async def opened() -> Facts:
            async with self._builds.take(run, process.file_bytes < SMALL_FILE) as turn:
                file = await asyncio.to_thread(read)
                seconds = self._settings.worker_seconds
                tables = self._tables(process.key)
                try:
                    return await open_tokenizer(process, file, roles, tables, seconds, turn)
                except FrameError:
                    raise self.distrust(process, None) from None

        if _to_do(process.opening):
            process.opening = self._run(self._step(process, opened()))
        assert process.opening is not None
        return await asyncio.shield(process.opening)

    async def build(self, process: StudentProcess, run: str, teacher: str, side: int) -> None:
        """Builds the tables of an opened process that is held with this teacher's vocabulary,
        unless they are there; raises as ``StudentProcess.ask``.

        Args:
            run: in whose turn they are built.
            side: the vocabulary's number.
        """

        async def built() -> None:
            async with self._builds.take(run, process.file_bytes < SMALL_FILE) as turn:
                frame = Frame("pair", {"teacher": teacher})
                await process.ask(frame, self._settings.worker_seconds, turn=turn)
            process.teachers[side] = teacher
            if not process.asked:
                process.expected_bytes = process.private_bytes
                self._expected.note(process.key, process.private_bytes)

        if side in process.teachers:
            process.teachers[side] = process.teachers.pop(side)  # the last used
            return
        if _to_do(process.building.get(side)):
            process.building[side] = task = self._run(self._step(process, built()))
            task.add_done_callback(lambda _: process.building.pop(side, None))
        await asyncio.shield(process.building[side])

    async def ask(self, process: StudentProcess, run: str, frame: Frame, seconds: float) -> Frame:
        """The answer of an opened process that is held, when it is the turn of the run that
        asks, of several that share it; raises as ``StudentProcess.ask``. What was begun for a
        caller that leaves keeps its turn, and its process, until it ends."""
        blamed = None if frame.kind == "difference" else run

        async def asked() -> Frame:
            async with self._turns.take(run) as turn:
                began = time.monotonic()
                try:
                    return await process.ask(frame, seconds, run=blamed, turn=turn)
                finally:
                    alone = not set(process.callers) - {run}
                    if blamed and not alone and time.monotonic() > began + LONG_STEP_SECONDS:
                        self._failures.set_apart(process.key, run)

        step = self._run(self._step(process, asked()))
        try:
            return await asyncio.shield(step)
        except asyncio.CancelledError:
            step.cancel()  # unless it has begun
            raise

    def distrust(self, process: StudentProcess, run: str | None) -> LsmError:
        """Ends a process that has said what cannot be; returns the error for its request.

        Args:
            run: whose request it was; None for what was asked of the tokenizer itself.
        """
        if process.failed is None:
            process.failed = WorkerError("gave an answer that is none", own=True)
            process.blamed = run
        self._bury(process)
        return refused("gave an answer that is none")

    def end(self, process: StudentProcess) -> None:
        """Ends a process."""
        if self._processes.get(process.name) is process:
            del self._processes[process.name]
        self._run(self._ending.run(process.close))

    def in_background(self, work: Coroutine[Any, Any, object]) -> None:
        """Work that nobody waits for, and whose failure means nothing."""
        self._run(work)

    async def close(self) -> None:
        """Ends all processes; who asks for one from here on is told so."""
        self._closed = True
        for process in list(self._processes.values()):
            self.end(process)
        for one in self._waiting:
            if not one.ready.done():
                one.ready.set_exception(_closed())
        while self._background:
            await asyncio.gather(*self._background, return_exceptions=True)
        self._ending.close()

    def _run(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """As a task of its own: others may wait for it when one caller gives up."""
        task = asyncio.create_task(work)
        self._background.add(task)
        task.add_done_callback(self._done)
        return task

    def _done(self, task: asyncio.Task[Any]) -> None:
        self._background.discard(task)
        if not task.cancelled():
            task.exception()  # seen: the caller that it was for may have left

    async def _step(self, process: StudentProcess, work: Coroutine[Any, Any, T]) -> T:
        """The result; the process is in use meanwhile."""
        with self._stepping(process):
            return await work

    @contextlib.contextmanager
    def _stepping(self, process: StudentProcess) -> Iterator[None]:
        process.steps += 1
        try:
            yield
        finally:
            process.steps -= 1
            self._settle(process)

    def _live(self, name: tuple[str, str | None]) -> StudentProcess | None:
        """The process of this name, if it has not ended."""
        process = self._processes.get(name)
        if process is None:
            return None
        process.notice_end()
        self._bury(process)
        return None if process.failed is not None else process

    def _enter(self, process: StudentProcess, run: str) -> None:
        if not process.users:
            process.run = run
        process.callers[run] += 1
        self._processes.move_to_end(process.name)

    def _leave(self, process: StudentProcess, run: str) -> None:
        process.callers[run] -= 1
        process.callers += Counter()  # forgets runs that have none
        if process.steps and not process.callers:
            process.left_at = time.monotonic()
            loop = asyncio.get_running_loop()
            loop.call_later(ABANDONED_SECONDS, self._give_up, process, process.left_at)
        self._settle(process)

    def _give_up(self, process: StudentProcess, left_at: float) -> None:
        """Ends a process with steps that nobody waits for any more."""
        if process.steps and not process.callers and process.left_at == left_at:
            if process.failed is None:
                process.failed = WorkerError("went on when its callers had left", own=False)
            self._bury(process)
            self._settle(process)

    def _settle(self, process: StudentProcess) -> None:
        """What follows when somebody has left a process, or a step has ended."""
        self._bury(process)
        if not process.users and process.useless:
            self.end(process)
        for one in to_end(list(self._processes.values()), self._settings.max_memory_bytes):
            if one.users and one.failed is None:
                one.failed = WorkerError("was ended: others need its memory", own=False)
            self.end(one)
        for one, side in to_forget(list(self._processes.values()), self._settings.max_pairs):
            frame = Frame("forget", {"teacher": one.teachers.pop(side)})
            self.in_background(one.ask(frame, self._settings.worker_seconds))
        self._admit()

    async def _room_for(
        self, name: tuple[str, str | None], run: str, file_bytes: int
    ) -> StudentProcess:
        """A process of this name, entered, once there is memory for it."""
        ready: asyncio.Future[StudentProcess] = asyncio.get_running_loop().create_future()
        waiter = _Waiter(name, run, file_bytes, ready)
        self._waiting.append(waiter)
        self._admit()
        try:
            async with asyncio.timeout(ROOM_SECONDS):
                return await ready
        except BaseException as error:
            if ready.done() and not ready.cancelled() and ready.exception() is None:
                self._leave(ready.result(), run)  # there was room just now
            if isinstance(error, TimeoutError):
                raise _overloaded() from None
            raise
        finally:
            if waiter in self._waiting:
                self._waiting.remove(waiter)

    def _admit(self) -> None:
        """Gives memory to those who wait: to the runs whose processes in use take least, and
        within a run in the order of arrival."""
        while self._waiting and not self._closed:
            first: dict[str, _Waiter] = {}
            for waiter in self._waiting:
                if not waiter.ready.done():
                    first.setdefault(waiter.run, waiter)
            held = list(self._processes.values())
            runs = sorted(first, key=lambda run: in_use(held, run))
            admitted = next((one for run in runs if self._begin(one := first[run])), None)
            if admitted is None:
                return
            self._waiting.remove(admitted)

    def _begin(self, waiter: _Waiter) -> bool:
        """Whether there was memory."""
        process = self._live(waiter.name)
        if process is None:
            more = self._expected.bytes_of(waiter.name[0], waiter.file_bytes)
            held = list(self._processes.values())
            ended = to_end_for(held, waiter.run, more, self._settings.max_memory_bytes)
            if ended is None:
                return False
            for one in ended:
                self.end(one)
            rows = self._settings.worker_memory_bytes // ROWS_SHARE
            process = StudentProcess(waiter.name, self._start, waiter.file_bytes, more, rows)
            self._processes[waiter.name] = process
        self._enter(process, waiter.run)
        waiter.ready.set_result(process)
        return True

    def _check_failures(self, key: str, run: str) -> None:
        if self._closed:
            raise _closed()
        for who, whose in ((None, ""), (run, "in requests of this run ")):
            count = self._failures.count(key, who)
            if count >= MAX_FAILURES:
                raise refused(f"failed {count} times {whose}in the last {FAILURE_SECONDS:g} s")

    def _bury(self, process: StudentProcess) -> None:
        """Ends a process if it has failed, and remembers what was the tokenizer's own fault, or
        its run's."""
        if process.failed is None or self._processes.get(process.name) is not process:
            return
        log.warning("the process of a student's tokenizer %s", process.failed.what)
        self.end(process)
        # A tokenizer is not to blame for what requests have left in its process.
        if process.failed.own and (process.blamed is not None or not process.asked):
            self._failures.note(process.key, process.blamed)


def _to_do(task: asyncio.Task[Any] | None) -> bool:
    """Whether it was not begun, or failed."""
    return task is None or (task.done() and (task.cancelled() or task.exception() is not None))


def _overloaded() -> OverloadedError:
    return OverloadedError(
        "the tokenizers in use take all the memory there is for them, or this run's half of it",
        where="tokenizers.max_memory_bytes",
        fix="try again, or raise tokenizers.max_memory_bytes on the server",
        retry_after=RETRY_HINT,
    )


def _closed() -> TeacherUnavailableError:
    return TeacherUnavailableError(
        "the server ends",
        fix="try again when it is started",
        reason="TOKENIZERS_RESTARTING",
        retry_after=RETRY_HINT,
    )
