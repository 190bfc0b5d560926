"""A request that is realigned, in the process of its tokenizer."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator

from teacher_server.frames import Frame, FrameError
from teacher_server.workers.pool import Pool
from teacher_server.workers.process import StudentProcess

# Seconds of a processor for one step: in any case, and for each token of the request.
BASE_SECONDS, SECONDS_PER_TOKEN = 15.0, 0.02


class Session:
    """What is said to the process about one request, a message and its answer at a time."""

    def __init__(
        self, pool: Pool, process: StudentProcess, run: str, teacher: str, tokens: int
    ) -> None:
        self._pool = pool
        self._process = process
        self._run = run
        self._teacher = teacher
        self._seconds = BASE_SECONDS + SECONDS_PER_TOKEN * tokens
        self._number = process.next_session()
        self._going_on = False
        self._held = contextlib.AsyncExitStack()

    async def reserve(self, size: int) -> None:
        """Waits until the process has room for ``size`` bytes of rows of this request, which
        it then has until its end."""
        await self._held.enter_async_context(self._process.rows.hold(size, self._run))

    async def ask(self, frame: Frame) -> Frame:
        """What the process says after ``frame``; see ``Pool.ask`` for what it raises."""
        header = {**frame.header, "session": self._number, "teacher": self._teacher}
        self._going_on = True
        asked = Frame(frame.kind, header, frame.arrays)
        answer = await self._pool.ask(self._process, self._run, asked, self._seconds)
        self._going_on = answer.kind != "done"
        return answer

    async def close(self) -> None:
        """Drops the request, unless it is done."""
        await self._held.aclose()
        if self._going_on and self._process.failed is None:
            frame = Frame("drop", {"session": self._number})
            dropped = self._process.ask(frame, self._seconds, run=self._run)
            self._pool.in_background(dropped)


@contextlib.asynccontextmanager
async def open_session(
    pool: Pool, process: StudentProcess, run: str, teacher: str, tokens: int
) -> AsyncIterator[Session]:
    """A request of a process that is held and has the tables of this teacher.

    Args:
        run: whose request it is, of those that share the process.
        tokens: that the request has; a step may take the longer, the more there are.

    Raises:
        InvalidRequestError: for a FrameError inside: what the process said cannot be.
    """
    session = Session(pool, process, run, teacher, tokens)
    try:
        yield session
    except FrameError:
        raise pool.distrust(process, run) from None
    finally:
        await session.close()
