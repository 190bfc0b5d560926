"""Follows one request through a package: which files are called, in which order.

A *stop* is a file that is called while another one was at work; calls inside one file
are one stop. A *return* is a stop at a file that was left before. Only calls count, not
their ends: coming back to a caller costs a reader nothing until it calls again. A room
can be closed: it then counts as one file, and what happens inside it is not followed.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any


@dataclass(frozen=True)
class Way:
    """The calls of one request, in order.

    Attributes:
        calls: (place, function); a place is a file, relative to the package, or the
            name of a closed room.
    """

    calls: tuple[tuple[str, str], ...]

    @property
    def stops(self) -> list[str]:
        """The places in order, each as often as it is come to."""
        places = [place for place, _ in self.calls]
        return [
            place for place, last in zip(places, [None, *places], strict=False) if place != last
        ]

    @property
    def returns(self) -> int:
        return len(self.stops) - len(set(self.stops))


class Footsteps:
    """Records calls of functions of one package, in this thread and in those that were
    started while it was ``installed``.

    Args:
        package: the folder whose files are followed.
        closed: room -> beginnings of its files' paths, relative to the package.
    """

    def __init__(self, package: Path, closed: Mapping[str, Sequence[str]]) -> None:
        self._root = f"{package}/"
        self._closed = closed
        self._calls: list[tuple[str, str]] = []
        # Holding the frames keeps each a new one: a coroutine that is resumed is no new call.
        self._seen: set[FrameType] = set()
        self._following = False

    @contextmanager
    def installed(self) -> Iterator[None]:
        threading.setprofile(self._profile)
        try:
            yield
        finally:
            threading.setprofile(None)

    @contextmanager
    def following(self) -> Iterator[list[Way]]:
        """Records what is called inside; the one way is there at the end."""
        found: list[Way] = []
        self._calls, self._seen, self._following = [], set(), True
        sys.setprofile(self._profile)
        try:
            yield found
        finally:
            sys.setprofile(None)
            self._following = False
            found.append(Way(tuple(self._calls)))
            self._seen.clear()

    def _profile(self, frame: FrameType, event: str, argument: Any) -> None:
        if not self._following or event != "call" or frame in self._seen:
            return
        place = self._place(frame)
        if place is None:
            return
        self._seen.add(frame)
        if place not in self._closed or self._caller(frame) not in (None, place):
            self._calls.append((place, frame.f_code.co_qualname))

    def _caller(self, frame: FrameType) -> str | None:
        """The place of the nearest caller in the package; None when a thread begins here."""
        back = frame.f_back
        while back is not None and (place := self._place(back)) is None:
            back = back.f_back
        return None if back is None else place

    def _place(self, frame: FrameType) -> str | None:
        file = frame.f_code.co_filename
        if not file.startswith(self._root):
            return None
        file = file.removeprefix(self._root)
        rooms = (room for room, begins in self._closed.items() if file.startswith(tuple(begins)))
        return next(rooms, file)
