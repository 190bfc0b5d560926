"""What SIGTERM and SIGINT do.

Rollouts and waits for scores are given up, since a resumed run repeats them exactly. An
update or a save in progress is completed first. A second signal ends either at once.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Stopped(SystemExit):
    """A signal asked the program to end; the exit code is 128 + its number."""

    def __init__(self, number: int) -> None:
        super().__init__(128 + number)


class Stopper:
    """Context manager that handles the signals. It does nothing outside the main thread,
    because Python delivers no signals to other threads.

    Attributes:
        requested: number of the first signal; None before it.
        at_once: whether a second signal came, so that an update may be half done.
    """

    def __init__(self) -> None:
        self.requested: int | None = None
        self.at_once = False
        self._in_step = False
        self._interruptible = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Stopper:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._handle) for number in SIGNALS}
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    @contextmanager
    def step(self) -> Iterator[None]:
        """Around what a first signal lets complete."""
        self._in_step = True
        try:
            yield
        finally:
            self._in_step = False

    @contextmanager
    def interruptible(self) -> Iterator[None]:
        """Around the parts of a step that a first signal ends at once."""
        self._interruptible = True
        try:
            self.raise_if_requested()
            yield
        finally:
            self._interruptible = False

    def raise_if_requested(self) -> None:
        if self.requested is not None:
            raise Stopped(self.requested)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.requested is not None:
            self.at_once = True
            raise Stopped(number)
        self.requested = number
        if self._interruptible or not self._in_step:
            raise Stopped(number)
