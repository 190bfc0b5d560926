"""Threads for what a request makes the server compute outside of its engine.

Reading a body, rendering a conversation, tokenizing and writing a reply take seconds for
a large request. None of it is done on the event loop, and a small piece of work never
waits for a large one.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import os
import sys
import time
from collections import OrderedDict, deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from teacher_server.failures import as_exception, is_ending

T = TypeVar("T")
# Work on more bytes than these is heavy.
LIGHT_BYTES = 64 * 1024
LIGHT_THREADS = 2
HEAVY_THREADS = 2
# Of an integer in a body; reading one takes the square of its digits. The least that
# Python lets one set.
INTEGER_DIGITS = 640
# After so many seconds a thread that computes in Python lets another one run. A forward of
# an engine waits for its turn some hundred times.
SWITCH_SECONDS = 0.0005


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


class Lanes:
    """Light work in order of arrival; heavy work fairly between its owners.

    An owner has one piece of heavy work at a time; owners that wait take turns.
    """

    def __init__(self) -> None:
        self._light = ThreadPoolExecutor(LIGHT_THREADS, thread_name_prefix="light")
        self._heavy = ThreadPoolExecutor(HEAVY_THREADS, thread_name_prefix="heavy")
        self._working: set[str] = set()
        self._waiting: OrderedDict[str, deque[asyncio.Future[None]]] = OrderedDict()

    async def run(self, work: Callable[[], T], *, size: int, owner: str) -> T:
        """The result of ``work``, computed in another thread.

        Work whose caller is cancelled is dropped before its turn; once begun it keeps
        its thread to its end.

        Args:
            size: bytes that the work reads or writes.
            owner: the run it is for; empty when nobody is known.
        """
        call = guarded(work)
        context = contextvars.copy_context()
        if size <= LIGHT_BYTES:
            return await asyncio.wrap_future(self._light.submit(context.run, call))
        await self._turn(owner)
        loop = asyncio.get_running_loop()
        running = self._heavy.submit(context.run, call)

        def ended(_: Future[T]) -> None:
            with contextlib.suppress(RuntimeError):  # the loop has ended before the work
                loop.call_soon_threadsafe(self._leave, owner)

        running.add_done_callback(ended)
        return await asyncio.wrap_future(running)

    async def _turn(self, owner: str) -> None:
        """Returns when a thread is kept for ``owner``."""
        if owner not in self._working and len(self._working) < HEAVY_THREADS:
            self._working.add(owner)
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(owner, deque()).append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self._leave(owner)  # it was its turn just now
            raise

    def _leave(self, owner: str) -> None:
        self._working.discard(owner)
        if owner in self._waiting:
            self._waiting.move_to_end(owner)  # after the owners that waited meanwhile
        for other in list(self._waiting):
            if len(self._working) == HEAVY_THREADS:
                return
            if other not in self._working and self._give(other):
                self._working.add(other)

    def _give(self, owner: str) -> bool:
        """Wakes the first of the owner's work that is still wanted; whether there is one."""
        queue = self._waiting[owner]
        given = False
        while queue and not given:
            turn = queue.popleft()
            if given := not turn.done():
                turn.set_result(None)
        if not queue:
            del self._waiting[owner]
        return given
