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
from dataclasses import dataclass, field
from pathlib import Path
from types import CodeType, FrameType
from typing import Any


@dataclass
class Way:
    """The calls of one request, in order.

    Attributes:
        calls: (place, code); a place is a file, relative to the package, or the name of
            a closed room.
    """

    calls: list[tuple[str, CodeType]] = field(default_factory=list)

    @property
    def stops(self) -> list[str]:
        """The places in order, each as often as it is come to."""
        found: list[str] = []
        for place, _ in self.calls:
            if found[-1:] != [place]:
                found.append(place)
        return found

    @property
    def returns(self) -> int:
        return len(self.stops) - len(set(self.stops))

    @property
    def parameters(self) -> dict[str, int]:
        """Function -> how many parameters it takes, without ``self``; of open rooms only."""
        found = {}
        for place, code in self.calls:
            if place.endswith(".py"):
                count = code.co_argcount + code.co_kwonlyargcount
                own = code.co_varnames[:1] in (("self",), ("cls",))
                found[f"{place}: {code.co_qualname}"] = count - own
        return found


class Footsteps:
    """Records calls of a package's functions, in this thread and in those that were
    started while it was ``installed``.

    Args:
        package: the folder whose files are followed.
        closed: room -> beginnings of its files' paths, relative to the package.
    """

    def __init__(self, package: Path, closed: Mapping[str, Sequence[str]]) -> None:
        self._root = f"{package}/"
        self._closed = closed
        self._way: Way | None = None
        # Frames are held, so that each stays itself: a coroutine that is resumed is no new call.
        self._seen: set[FrameType] = set()

    @contextmanager
    def installed(self) -> Iterator[None]:
        threading.setprofile(self._profile)
        try:
            yield
        finally:
            threading.setprofile(None)

    @contextmanager
    def following(self) -> Iterator[Way]:
        """Records what is called inside."""
        self._way = Way()
        sys.setprofile(self._profile)
        try:
            yield self._way
        finally:
            sys.setprofile(None)
            self._way = None
            self._seen.clear()

    def _profile(self, frame: FrameType, event: str, argument: Any) -> None:
        way = self._way
        if way is None or event != "call" or frame in self._seen:
            return
        place = self._place(frame)
        if place is None:
            return
        self._seen.add(frame)
        if place not in self._closed or self._caller(frame) not in (None, place):
            way.calls.append((place, frame.f_code))

    def _caller(self, frame: FrameType) -> str | None:
        """The place of the nearest caller in the package; None where a thread begins."""
        back = frame.f_back
        while back is not None and self._place(back) is None:
            back = back.f_back
        return None if back is None else self._place(back)

    def _place(self, frame: FrameType) -> str | None:
        file = frame.f_code.co_filename
        if not file.startswith(self._root):
            return None
        file = file.removeprefix(self._root)
        rooms = (room for room, begins in self._closed.items() if file.startswith(tuple(begins)))
        return next(rooms, file)
