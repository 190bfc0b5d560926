"""Replies are kept for a while, so that a request that is sent again is not computed again.

Requests are the same when run, request id and digest of the body are. Callers that
arrive while the work is in progress join it. Failures are not kept. The window is bounded
by the number of replies, their bytes and their age.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from teacher_proto.errors import LsmError, TeacherUnavailableError

from teacher_server.failures import as_exception, is_ending
from teacher_server.queue.scheduler import Deadline
from teacher_server.scoring.context import Bytes

Key = tuple[str, str, bytes]


@dataclass(eq=False)
class _Running:
    """Work in progress, and how many callers wait for it."""

    deadline: Deadline
    reply: asyncio.Future[Bytes]
    task: asyncio.Task[None] | None = None
    waiters: int = 0


@dataclass
class _Kept:
    reply: Bytes
    expires: float


@dataclass
class ReplayWindow:
    """At most ``max_entries`` replies of ``max_bytes`` together, each ``max_seconds`` old."""

    max_entries: int
    max_bytes: int
    max_seconds: float
    clock: Callable[[], float] = time.monotonic
    kept_bytes: int = 0
    _kept: OrderedDict[Key, _Kept] = field(default_factory=OrderedDict)
    _running: dict[Key, _Running] = field(default_factory=dict)
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)

    async def answer(
        self,
        key: Key,
        deadline: float,
        compute: Callable[[Deadline], Awaitable[Bytes]],
    ) -> tuple[Bytes, bool]:
        """(reply, replayed): the reply to ``key``, computed at most once at a time.

        The work runs in a task of its own. It continues as long as any caller waits for
        it, has the latest of their deadlines, and is cancelled when the last of them leaves.

        Args:
            deadline: of this caller, ``time.monotonic``.
            compute: the work; whatever it raises reaches every caller that waits.
        """
        self._forget_old()
        kept = self._kept.get(key)
        if kept is not None:
            return kept.reply, True
        running = self._running.get(key)
        joined = running is not None
        if running is None:
            running = self._start(key, Deadline(deadline), compute)
        else:
            running.deadline.extend(deadline)
        running.waiters += 1
        try:
            return await asyncio.shield(running.reply), joined
        finally:
            running.waiters -= 1
            if running.waiters == 0 and not running.reply.done():
                self._stop(key, running, TeacherUnavailableError("nobody waits for it any more"))

    def abandon(self, error: LsmError) -> None:
        """Fails all work in progress with ``error``."""
        for key, running in list(self._running.items()):
            self._stop(key, running, error)

    async def close(self) -> None:
        """Waits until every task has ended; the caller abandons work in progress first."""
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _start(
        self, key: Key, deadline: Deadline, compute: Callable[[Deadline], Awaitable[Bytes]]
    ) -> _Running:
        running = _Running(deadline, asyncio.get_running_loop().create_future())

        task = asyncio.create_task(self._run(key, running, compute))
        running.task = task
        self._running[key] = running
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return running

    async def _run(
        self, key: Key, running: _Running, compute: Callable[[Deadline], Awaitable[Bytes]]
    ) -> None:
        try:
            reply = await compute(running.deadline)
        except BaseException as error:
            if is_ending(error):
                self._settle(key, running, TeacherUnavailableError("the work was stopped"))
                raise
            self._settle(key, running, as_exception(error))
        else:
            self._keep(key, reply)
            self._settle(key, running, reply)

    def _settle(self, key: Key, running: _Running, outcome: Bytes | Exception) -> None:
        if self._running.get(key) is running:
            del self._running[key]
        if running.reply.done():
            return
        if not isinstance(outcome, Exception):
            running.reply.set_result(outcome)
        else:
            running.reply.set_exception(outcome)
            running.reply.exception()  # marks it as seen: nobody may be waiting

    def _stop(self, key: Key, running: _Running, error: LsmError) -> None:
        self._settle(key, running, error)
        if running.task is not None:
            running.task.cancel()

    def _keep(self, key: Key, reply: Bytes) -> None:
        if key in self._kept:
            self.kept_bytes -= len(self._kept.pop(key).reply)
        if self.max_entries == 0 or len(reply) > self.max_bytes:
            return
        self._kept[key] = _Kept(reply, self.clock() + self.max_seconds)
        self.kept_bytes += len(reply)
        while len(self._kept) > self.max_entries or self.kept_bytes > self.max_bytes:
            self._drop_oldest()

    def _forget_old(self) -> None:
        now = self.clock()
        while self._kept and next(iter(self._kept.values())).expires <= now:
            self._drop_oldest()

    def _drop_oldest(self) -> None:
        _, kept = self._kept.popitem(last=False)
        self.kept_bytes -= len(kept.reply)
