"""What went wrong in students' processes: a tokenizer's own fault, or one run's requests'."""

from __future__ import annotations

import time
from collections import OrderedDict, deque
from collections.abc import Callable

# A tokenizer, or one run's requests in it, that failed so often within so many seconds is refused
# meanwhile.
MAX_FAILURES, FAILURE_SECONDS = 3, 600.0
# Of tokenizers, and of runs' requests in them, whose failures are remembered.
MAX_REMEMBERED = 4096


class Failures:
    """By the key of a tokenizer, and by the run whose request failed in it: what one run asks
    counts for no other."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._times: OrderedDict[tuple[str, str | None], deque[float]] = OrderedDict()
        self._apart: OrderedDict[tuple[str, str | None], float] = OrderedDict()

    def note(self, key: str, run: str | None) -> None:
        """A failure of the tokenizer itself, or, with a run, of this run's request."""
        times = self._times.setdefault((key, run), deque(maxlen=MAX_FAILURES))
        times.append(self._clock())
        self._times.move_to_end((key, run))
        if len(self._times) > MAX_REMEMBERED:
            self._times.popitem(last=False)
        if run is not None:
            self.set_apart(key, run)

    def count(self, key: str, run: str | None) -> int:
        """Of those that were not long ago; at most MAX_FAILURES."""
        since = self._clock() - FAILURE_SECONDS
        return sum(at > since for at in self._times.get((key, run), ()))

    def set_apart(self, key: str, run: str) -> None:
        """From here on, for a while, the run has a process of its own for this tokenizer."""
        self._apart[key, run] = self._clock()
        self._apart.move_to_end((key, run))
        if len(self._apart) > MAX_REMEMBERED:
            self._apart.popitem(last=False)

    def is_apart(self, key: str, run: str) -> bool:
        """Whether the run's requests end in a process that no other run uses."""
        return self._apart.get((key, run), -FAILURE_SECONDS) > self._clock() - FAILURE_SECONDS
