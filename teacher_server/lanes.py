"""Threads for what a request makes the server compute outside of its engine.

Reading a body, rendering a conversation, tokenizing and writing a reply take seconds for
a large request. None of it is done on the event loop, a small piece of work never waits
for a large one, and threads are shared fairly between the runs that they work for.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import os
import sys
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TypeVar

from teacher_server.failures import as_exception, is_ending

T = TypeVar("T")
# Work on more bytes than these is heavy.
LIGHT_BYTES = 64 * 1024
LIGHT_THREADS = 2
HEAVY_THREADS = 2
# Owners whose time is remembered at most, beside those who have work.
MAX_OWNERS = 1024
# Of an integer in a body; reading one takes the square of its digits. The least that
# Python lets one set.
INTEGER_DIGITS = 640
# After so many seconds a thread that computes in Python lets another one run. A forward of
# an engine waits for its turn some hundred times.
SWITCH_SECONDS = 0.0001


def share_the_interpreter() -> None:
    """Settings of the process: threads take short turns, reading one number cannot hold the
    interpreter for long, and the tokenizers library works in the thread that calls it, not
    in a pool where small texts wait for large ones."""
    sys.setswitchinterval(SWITCH_SECONDS)
    sys.set_int_max_str_digits(INTEGER_DIGITS)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


def let_waiting_threads_sleep() -> None:
    """Torch's threads sleep while they wait for each other; they do not spin. On few cores
    that tokenizing threads share, a spinning thread takes the core of the one it waits for,
    and a forward of milliseconds takes a second. Read when torch is imported."""
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def guarded(work: Callable[[], T]) -> Callable[[], T]:
    """``work`` for another thread: whatever fails there arrives as an ``Exception``."""

    def call() -> T:
        try:
            return work()
        except BaseException as error:
            if is_ending(error):
                raise
            raise as_exception(error) from None

    return call


class SingleThread:
    """A thread of its own for work that is done one piece after the other, as it arrives."""

    def __init__(self, name: str) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=name)

    async def run(self, work: Callable[[], T]) -> T:
        """The result of ``work``; it is dropped when its caller is cancelled before its turn."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, guarded(work))

    async def timed(self, work: Callable[[], T]) -> tuple[T, float]:
        """(the result of ``work``, seconds it took in the thread); see ``run``."""

        def measured() -> tuple[T, float]:
            started = time.perf_counter()
            result = work()
            return result, time.perf_counter() - started

        return await self.run(measured)

    def close(self) -> None:
        """Ends the thread after the work that it has."""
        self._thread.shutdown(wait=False)


@dataclass(eq=False)
class _Owner:
    """Whose work it is.

    Attributes:
        used: processor seconds that its work has taken; those of an owner who comes back
            are at least what the owner had who was served last.
        working: pieces that have a thread.
    """

    used: float = 0.0
    working: int = 0
    waiting: deque[asyncio.Future[None]] = field(default_factory=deque)

    @property
    def busy(self) -> bool:
        return bool(self.working or self.waiting)


class FairThreads:
    """Threads shared fairly by time between the owners of what they work on.

    Of the owners that wait, the one whose work has taken the least processor time is next
    (start-time fair queueing): one large piece counts as much as many small ones. Having
    been away earns nothing. The work of one owner begins in the order of arrival.

    Args:
        each: pieces of one owner that are worked on at once, at most.
    """

    def __init__(self, name: str, threads: int, each: int) -> None:
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix=name)
        self._free = threads
        self._each = each
        self._virtual = 0.0  # what the owner had used who was served last
        self._sweep_at = MAX_OWNERS
        self._owners: dict[str, _Owner] = {}
        self._waiting: dict[str, _Owner] = {}

    async def run(self, call: Callable[[], T], owner: str) -> T:
        """The result of ``call``; it is dropped when its caller is cancelled before its turn."""
        one = await self._turn(owner)
        loop = asyncio.get_running_loop()
        used, left = 0.0, False

        def timed() -> T:
            nonlocal used
            begun = time.thread_time()
            try:
                return call()
            finally:
                used = time.thread_time() - begun

        def ended(_: Future[T]) -> None:
            with contextlib.suppress(RuntimeError):  # the loop has ended before the work
                loop.call_soon_threadsafe(self._leave, owner, used)

        running = self._pool.submit(timed)
        try:
            return await asyncio.wrap_future(running)
        except asyncio.CancelledError:
            left = not running.cancelled()
            raise
        finally:
            if left:  # its thread is kept until the work has ended
                running.add_done_callback(ended)
            else:
                one.used += used
                one.working -= 1
                self._free += 1
                if self._waiting:
                    self._advance()

    async def _turn(self, owner: str) -> _Owner:
        """Returns when a thread is kept for ``owner``."""
        one = self._owners.get(owner)
        if one is None:
            self._forget_idle()
            one = self._owners[owner] = _Owner()
        if not one.busy:
            one.used = max(one.used, self._virtual)
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        one.waiting.append(turn)
        self._waiting[owner] = one
        self._advance()
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self._leave(owner, 0.0)  # it was its turn just now
            raise
        return one

    def _leave(self, owner: str, used: float) -> None:
        one = self._owners[owner]
        one.used += used
        one.working -= 1
        self._free += 1
        self._advance()

    def _advance(self) -> None:
        """Gives the free threads to those who are next."""
        while self._free:
            ready = [name for name, o in self._waiting.items() if o.working < self._each]
            if not ready:
                return
            owner = min(ready, key=lambda name: self._waiting[name].used)
            one = self._waiting[owner]
            turn = one.waiting.popleft()
            if not one.waiting:
                del self._waiting[owner]
            if turn.done():
                continue  # it is not wanted any more
            self._virtual = max(self._virtual, one.used)
            one.working += 1
            self._free -= 1
            turn.set_result(None)

    def _forget_idle(self) -> None:
        """Forgets owners without work: first those who would begin anew where they are, and
        where that is not enough the half of the others who have used least."""
        if len(self._owners) < self._sweep_at:
            return
        used = sorted(one.used for one in self._owners.values() if not one.busy)
        if len(used) >= MAX_OWNERS:
            self._virtual = max(self._virtual, used[len(used) // 2])
        self._owners = {
            name: one for name, one in self._owners.items() if one.busy or one.used > self._virtual
        }
        self._sweep_at = max(MAX_OWNERS, 2 * len(self._owners))


class Lanes:
    """Light and heavy work, each with threads of its own that its owners share.

    An owner has one piece of heavy work at a time, so that another finds a thread at once.
    """

    def __init__(self) -> None:
        self._light = FairThreads("light", LIGHT_THREADS, LIGHT_THREADS)
        self._heavy = FairThreads("heavy", HEAVY_THREADS, 1)

    async def run(self, work: Callable[[], T], *, size: int, owner: str) -> T:
        """The result of ``work``, computed in another thread.

        Work whose caller is cancelled is dropped before its turn; once begun it keeps
        its thread to its end.

        Args:
            size: bytes that the work reads or writes.
            owner: the run it is for, or the address it came from while no run is known.
        """
        context = contextvars.copy_context()
        lane = self._light if size <= LIGHT_BYTES else self._heavy
        return await lane.run(lambda: context.run(guarded(work)), owner)
