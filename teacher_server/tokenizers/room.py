"""Which registrations have to go so that one more has room. Pure.

A run gives up what is its own first. Beyond that those go that were used least recently, of
runs that are idle: no registration takes anything from another run that is active.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from teacher_server.tokenizers.entry import Entry, Registration


@dataclass(frozen=True)
class Bounds:
    """What is kept at most: of one run, and in all.

    Attributes:
        active_seconds: a run that used one of its tokenizers since so long ago is active.
    """

    per_run: int
    bytes_per_run: int
    contents: int
    bytes: int
    registrations: int
    active_seconds: float


class _Kept:
    """The registrations that stay, counted; equal contents and equal files count once."""

    def __init__(self, entries: Mapping[str, Entry]) -> None:
        self._entries = entries
        self._contents: Counter[str] = Counter()
        self._files: Counter[str] = Counter()
        self.registrations = 0
        self.bytes = 0

    @property
    def contents(self) -> int:
        return len(self._contents)

    def add(self, one: Registration) -> None:
        entry = self._entries[one.content]
        self.registrations += 1
        self._contents[one.content] += 1
        self._files[entry.file_sha256] += 1
        if self._files[entry.file_sha256] == 1:
            self.bytes += entry.file_bytes

    def remove(self, one: Registration) -> None:
        entry = self._entries[one.content]
        self.registrations -= 1
        self._contents[one.content] -= 1
        self._files[entry.file_sha256] -= 1
        if not self._contents[one.content]:
            del self._contents[one.content]
        if not self._files[entry.file_sha256]:
            del self._files[entry.file_sha256]
            self.bytes -= entry.file_bytes


def leaving(
    new: Registration,
    others: Iterable[Registration],
    entries: Mapping[str, Entry],
    bounds: Bounds,
    now: float,
) -> list[Registration] | None:
    """The registrations that go for ``new``; None where too many of those that it would need
    are of other runs that are active. Then nothing has to go.

    Args:
        others: without the one that ``new`` replaces.
        entries: by content, of all of them.
        now: seconds since the epoch.
    """
    by_use = sorted(others, key=lambda one: one.used)
    going = _beyond_own(new, [one for one in by_use if one.run == new.run], entries, bounds)
    gone = {one.key for one in going}
    stay = [one for one in by_use if one.key not in gone]
    kept = _Kept(entries)
    for one in (new, *stay):
        kept.add(one)
    active = {one.run for one in stay if now - one.used < bounds.active_seconds}
    idle = [one for one in stay if one.run != new.run and one.run not in active]
    own = [one for one in stay if one.run == new.run]
    protected = {one.content for one in stay if one.run != new.run and one.run in active}
    protected.add(new.content)
    for one in (*idle, *own):
        if _fits(kept, bounds):
            break
        if kept.registrations > bounds.registrations or one.content not in protected:
            kept.remove(one)
            going.append(one)
    return going if _fits(kept, bounds) else None


def next_idle(others: Iterable[Registration], bounds: Bounds, now: float) -> float:
    """Seconds until the first of the active runs counts as idle."""
    last: dict[str, float] = {}
    for one in others:
        last[one.run] = max(one.used, last.get(one.run, one.used))
    return max(0.0, min(last.values(), default=now) + bounds.active_seconds - now)


def _beyond_own(
    new: Registration,
    own: list[Registration],
    entries: Mapping[str, Entry],
    bounds: Bounds,
) -> list[Registration]:
    """Those of the run itself that its own bounds leave no room for, the oldest first."""
    kept = _Kept(entries)
    for one in (new, *own):
        kept.add(one)
    going = []
    for one in own:
        if kept.registrations <= bounds.per_run and kept.bytes <= bounds.bytes_per_run:
            break
        kept.remove(one)
        going.append(one)
    return going


def _fits(kept: _Kept, bounds: Bounds) -> bool:
    """One tokenizer by itself has room whatever its size."""
    return (
        kept.registrations <= bounds.registrations
        and kept.contents <= bounds.contents
        and (kept.bytes <= bounds.bytes or kept.contents == 1)
    )
