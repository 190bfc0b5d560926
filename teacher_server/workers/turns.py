"""Turns to compute, shared between runs by the processor time that each has used."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter, OrderedDict, deque
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass

# What a run has used counts half after so many seconds.
HALF_LIFE = 60.0
# A run that has used less than so many seconds has used little.
LITTLE_SECONDS = 1.0
# What goes on for longer is nothing quick.
QUICK_SECONDS = 1.0
# Runs whose use is remembered.
MAX_RUNS = 4096


class Use:
    """Seconds of a processor that runs have used of late."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._used: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def of(self, run: str) -> float:
        """What a run has used, of which what is long ago counts less."""
        used, at = self._used.get(run, (0.0, 0.0))
        return used * 0.5 ** ((self._clock() - at) / HALF_LIFE) if used else 0.0

    def add(self, run: str, seconds: float) -> None:
        """What a run has used more."""
        self._used[run] = self.of(run) + seconds, self._clock()
        self._used.move_to_end(run)
        if len(self._used) > MAX_RUNS:
            self._used.popitem(last=False)


@dataclass(eq=False)
class Turn:
    """Attributes:
    used: seconds of a processor; to be noted while one has the turn.
    quick: whether it is one of those for what is quick.
    """

    run: str
    quick: bool
    used: float = 0.0


class Turns:
    """At most ``total`` turns at once, and ``per_run`` of one run. The run that has used least is
    next, and of equal ones those that were served longest ago.

    ``quick`` more are for runs that have used little, so that they find one at once. What lasts
    there takes one of the ordinary turns in advance, up to twice as many as there are.

    Args:
        use: of the runs; what they use is added to it.
        seconds: after which a turn is nothing quick.
    """

    def __init__(
        self, total: int, per_run: int, quick: int, use: Use, seconds: float = QUICK_SECONDS
    ) -> None:
        self._free = total
        self._least_free = -2 * total
        self._per_run = per_run
        self._free_quick = quick
        self._use = use
        self._seconds = seconds
        self._taken: Counter[str] = Counter()
        self._turns: set[Turn] = set()
        self._waiting: OrderedDict[str, deque[tuple[bool, asyncio.Future[Turn]]]] = OrderedDict()

    @contextlib.asynccontextmanager
    async def take(self, run: str, quick: bool = True) -> AsyncIterator[Turn]:
        """Waits for a turn and has it meanwhile.

        Args:
            quick: whether it may be one for what is quick.
        """
        ready: asyncio.Future[Turn] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(run, deque()).append((quick, ready))
        self._advance()
        try:
            turn = await ready
        except asyncio.CancelledError:
            if ready.done() and not ready.cancelled():
                self._end(ready.result())  # it was its turn just now
            raise
        try:
            yield turn
        finally:
            self._end(turn)

    def _advance(self) -> None:
        while True:
            for run in [run for run in self._waiting if not self._head(run)]:
                del self._waiting[run]
            runs = [run for run in self._waiting if self._taken[run] < self._per_run]
            runs.sort(key=self._use.of)
            if self._free <= 0:
                if self._free_quick <= 0:
                    return
                little = (run for run in runs if self._use.of(run) < LITTLE_SECONDS)
                runs = [run for run in little if self._waiting[run][0][0]]
            if not runs:
                return
            self._begin(runs[0], quick=self._free <= 0)

    def _head(self, run: str) -> bool:
        """Whether a run waits for anything still."""
        waiting = self._waiting[run]
        while waiting and waiting[0][1].done():  # given up
            waiting.popleft()
        return bool(waiting)

    def _begin(self, run: str, *, quick: bool) -> None:
        turn = Turn(run, quick)
        self._taken[run] += 1
        self._turns.add(turn)
        if quick:
            self._free_quick -= 1
            loop = asyncio.get_running_loop()
            loop.call_later(self._seconds, self._outlasted, turn)
        else:
            self._free -= 1
        self._waiting[run].popleft()[1].set_result(turn)
        self._waiting.move_to_end(run)

    def _outlasted(self, turn: Turn) -> None:
        """What is not quick leaves its turn to what is."""
        if turn in self._turns and turn.quick and self._free > self._least_free:
            turn.quick = False
            self._free_quick += 1
            self._free -= 1
            self._advance()

    def _end(self, turn: Turn) -> None:
        self._turns.discard(turn)
        self._use.add(turn.run, turn.used)
        self._taken[turn.run] -= 1
        self._taken += Counter()  # forgets runs that have none
        if turn.quick:
            self._free_quick += 1
        else:
            self._free += 1
        self._advance()
