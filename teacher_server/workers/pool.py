"""The students' processes: one per tokenizer, as many as memory allows."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import os
import time
from collections import Counter, OrderedDict, deque
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from functools import partial
from typing import Any, TypeVar
from weakref import WeakValueDictionary

from teacher_proto.errors import LsmError, OverloadedError

from teacher_server.config import TokenizerSettings
from teacher_server.frames import Frame, FrameError
from teacher_server.lanes import SingleThread
from teacher_server.workers.forks import ForkServer
from teacher_server.workers.inside.errors import WorkerError
from teacher_server.workers.inside.vocabularies import Roles
from teacher_server.workers.process import Facts, StudentProcess, open_tokenizer, refused
from teacher_server.workers.turns import Turns
from teacher_server.workers.worker import Worker

log = logging.getLogger(__name__)

T = TypeVar("T")
# Tokenizers that are opened, or whose tables are built, at once.
BUILDS = 2
# The part of a process's memory for the rows of the requests that it realigns: they are copied
# and widened there.
ROWS_SHARE = 8
# Seconds that a tokenizer waits for memory that others are using, at most.
ROOM_SECONDS = 30.0
RETRY_HINT = 5.0
# What a process counts for at least, in bytes: the kernel and the server hold some for it too.
LEAST_BYTES = 32 * 2**20
# A tokenizer that has failed so often within so many seconds is refused meanwhile.
MAX_FAILURES, FAILURE_SECONDS = 3, 600.0
# Tokenizers whose failures are remembered.
MAX_REMEMBERED = 4096


def key_of(file_sha256: str, roles: Roles) -> str:
    """The key of a tokenizer's process: of its file, and the roles given to its special ids."""
    named = sorted((token, int(role)) for token, role in roles.items())
    return hashlib.sha256(repr((file_sha256, named)).encode()).hexdigest()


class Pool:
    """Processes by ``key_of``. The least recently used one that nobody holds is ended where
    all together take more than ``max_memory_bytes``: first those of runs that have more than
    an equal share of it.

    Args:
        tables: key of a process -> its folder for tables of pairs; empty for none.
    """

    def __init__(
        self, forks: ForkServer, settings: TokenizerSettings, tables: Callable[[str], str]
    ) -> None:
        self._settings = settings
        self._tables = tables
        self._start = partial(Worker, forks, settings.worker_memory_bytes)
        self._processes: OrderedDict[str, StudentProcess] = OrderedDict()
        cores = max(2, os.cpu_count() or 2)
        self._turns = Turns(cores, per_run=cores // 2)
        self._builds = asyncio.Semaphore(BUILDS)
        self._builds_of: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._freed = asyncio.Event()
        self._failures: OrderedDict[str, deque[float]] = OrderedDict()
        self._ending = SingleThread("ending")
        self._background: set[asyncio.Task[Any]] = set()

    @contextlib.asynccontextmanager
    async def hold(self, key: str, run: str) -> AsyncIterator[StudentProcess]:
        """The tokenizer's process, which is kept meanwhile.

        Raises:
            InvalidRequestError: it failed too often.
            OverloadedError: there is no memory for one more.
        """
        self._check_failures(key)
        process = self._processes.get(key)
        if process is not None:
            process.notice_end()
            self._bury(process)
        if process is None or process.failed is not None:
            await self._wait_for_room(run)
            process = self._processes.get(key)
        if process is None or process.failed is not None:
            rows = self._settings.worker_memory_bytes // ROWS_SHARE
            process = self._processes[key] = StudentProcess(key, self._start, rows)
        self._processes.move_to_end(key)
        process.run = run
        with self._using(process):
            yield process

    async def open(self, process: StudentProcess, roles: Roles, read: Callable[[], bytes]) -> Facts:
        """What is known of the tokenizer of a process that is held, which is opened first.

        Args:
            read: its file; called in a thread where it is opened.

        Raises:
            LsmError: see ``open_tokenizer``, and what ``read`` raises.
        """

        async def opened() -> Facts:
            async with self._turn(process):
                file = await asyncio.to_thread(read)
                seconds = self._settings.worker_seconds
                tables = self._tables(process.key)
                return await open_tokenizer(process, file, roles, tables, seconds)

        if _to_do(process.opening):
            process.opening = self._run(self._checked(process, opened()))
        assert process.opening is not None
        return await asyncio.shield(process.opening)

    async def build(self, process: StudentProcess, teacher: str, side: int) -> None:
        """Builds the tables of an opened process that is held with this teacher's vocabulary,
        unless they are there; raises as ``StudentProcess.ask``.

        Args:
            side: the vocabulary's number.
        """

        async def built() -> None:
            async with self._turn(process):
                frame = Frame("pair", {"teacher": teacher})
                await process.ask(frame, self._settings.worker_seconds, measure=True)

        if _to_do(process.building.get(side)):
            process.building[side] = self._run(self._checked(process, built()))
        await asyncio.shield(process.building[side])
        process.teachers.pop(side, None)
        process.teachers[side] = teacher
        self._forget_pairs()

    async def ask(self, process: StudentProcess, run: str, frame: Frame, seconds: float) -> Frame:
        """The answer of an opened process that is held, when it is the turn of the run that
        asks, of several that share it; raises as ``StudentProcess.ask``."""
        async with self._turns.take(run):
            return await self._checked(process, process.ask(frame, seconds))

    def distrust(self, process: StudentProcess) -> LsmError:
        """Ends a process that has said what cannot be; returns the error for its request."""
        process.failed = process.failed or WorkerError("gave an answer that is none", own=True)
        self._bury(process)
        return refused("gave an answer that is none")

    def end(self, process: StudentProcess) -> None:
        """Ends a process."""
        if self._processes.get(process.key) is process:
            del self._processes[process.key]
        self._run(self._ending.run(process.close))
        self._freed.set()

    def in_background(self, work: Coroutine[Any, Any, object]) -> None:
        """Work that nobody waits for, and whose failure means nothing."""
        self._run(work)

    async def close(self) -> None:
        """Ends all processes."""
        for process in list(self._processes.values()):
            self.end(process)
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

    async def _checked(self, process: StudentProcess, work: Coroutine[Any, Any, T]) -> T:
        """The result; a process whose answer is none is ended."""
        with self._using(process):
            try:
                return await work
            except FrameError:
                raise self.distrust(process) from None

    @contextlib.contextmanager
    def _using(self, process: StudentProcess) -> Iterator[None]:
        process.users += 1
        try:
            yield
        finally:
            process.users -= 1
            self._bury(process)
            if not process.users and process.useless:
                self.end(process)
            self._make_room(0)
            self._freed.set()

    @contextlib.asynccontextmanager
    async def _turn(self, process: StudentProcess) -> AsyncIterator[None]:
        """A run builds one thing at once, so that it leaves room for the others."""
        own = self._builds_of.get(process.run)
        if own is None:
            own = self._builds_of[process.run] = asyncio.Lock()
        async with own, self._builds:
            yield

    async def _wait_for_room(self, run: str) -> None:
        try:
            async with asyncio.timeout(ROOM_SECONDS):
                while not self._make_room(1):
                    self._freed.clear()
                    await self._freed.wait()
        except TimeoutError:
            raise OverloadedError(
                "the tokenizers in use take all the memory there is for them",
                where="tokenizers.max_memory_bytes",
                fix="try again, or raise tokenizers.max_memory_bytes on the server",
                retry_after=RETRY_HINT,
            ) from None

    def _make_room(self, more: int) -> bool:
        """Ends idle processes until ``more`` bytes fit; whether they do."""
        while True:
            used = sum(map(_charged, self._processes.values()))
            if used + more <= self._settings.max_memory_bytes:
                return True
            idle = [one for one in self._processes.values() if not one.users]
            if not idle:
                return False
            of_runs: Counter[str] = Counter()
            for one in self._processes.values():
                of_runs[one.run] += _charged(one)
            greedy = [one for one in idle if of_runs[one.run] > used / len(of_runs)]
            self.end((greedy or idle)[0])

    def _forget_pairs(self) -> None:
        """Drops the tables of the least recently used pairs where there are too many."""
        held = sum(len(one.building) for one in self._processes.values())
        for process in list(self._processes.values()):
            for side in list(process.teachers):
                if held <= self._settings.max_pairs:
                    return
                frame = Frame("forget", {"teacher": process.teachers.pop(side)})
                process.building.pop(side, None)
                self.in_background(process.ask(frame, self._settings.worker_seconds))
                held -= 1

    def _check_failures(self, key: str) -> None:
        times = self._failures.get(key, ())
        recent = [t for t in times if t > time.monotonic() - FAILURE_SECONDS]
        if len(recent) >= MAX_FAILURES:
            raise refused(f"failed {len(recent)} times in the last {FAILURE_SECONDS:g} s")

    def _bury(self, process: StudentProcess) -> None:
        """Ends a process if it has failed, and remembers what was the tokenizer's own fault."""
        if process.failed is None or self._processes.get(process.key) is not process:
            return
        log.warning("the process of a student's tokenizer %s", process.failed.what)
        self.end(process)
        if not process.failed.own:
            return
        times = self._failures.setdefault(process.key, deque(maxlen=MAX_FAILURES))
        times.append(time.monotonic())
        self._failures.move_to_end(process.key)
        while len(self._failures) > MAX_REMEMBERED:
            self._failures.popitem(last=False)


def _charged(process: StudentProcess) -> int:
    """Bytes that a process counts for."""
    return max(process.private_bytes, LEAST_BYTES)


def _to_do(task: asyncio.Task[Any] | None) -> bool:
    """Whether it was not begun, or failed."""
    return task is None or (task.done() and (task.cancelled() or task.exception() is not None))
