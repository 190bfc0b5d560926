"""The specification carried out to the letter, for a teacher that writes few texts.

``reference`` draws texts; here all of them are read. The teacher ends its text: it has no next
token then.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

from benchmarks.realign.reference.pasts import Past, Window
from benchmarks.realign.reference.raw_tokenizer import RawTokenizer
from benchmarks.realign.reference.specification import IMPOSSIBLE, outcome


class EndingTeacher(Protocol):
    def row(self, before: tuple[int, ...]) -> dict[int, float]:
        """The probability of each token that may follow; empty after the text's end."""
        ...


def exhaustive(
    window: Window, model: EndingTeacher, student: RawTokenizer, teacher: RawTokenizer
) -> dict[int, float]:
    """Student id -> probability; LOST is among the ids where some of it is."""
    masses: dict[int, float] = {}
    for path, mass in _texts(window, model, teacher, (), 1.0):
        text = teacher.decode(path).decode()
        cut = teacher.encode(text)
        past = Past(_past(window, teacher, path), 1.0, {})
        found = outcome(window, past, path, student.encode(text), cut)
        if found != IMPOSSIBLE:
            masses[found] = masses.get(found, 0.0) + mass
    total = sum(masses.values())
    return {found: mass / total for found, mass in masses.items()}


def _texts(
    window: Window,
    model: EndingTeacher,
    teacher: RawTokenizer,
    path: tuple[int, ...],
    mass: float,
) -> Iterator[tuple[tuple[int, ...], float]]:
    """Every text that agrees with the text so far, token by token, and its probability."""
    row = model.row((*window.before, *path))
    if not row:
        yield path, mass
    for token, share in row.items():
        data = teacher.decode((*path, token))
        if data[: len(window.said)] == window.said[: len(data)]:
            yield from _texts(window, model, teacher, (*path, token), mass * share)


def _past(window: Window, teacher: RawTokenizer, path: tuple[int, ...]) -> tuple[int, ...]:
    """The tokens that end within the text so far."""
    count = 0
    while count < len(path) and len(teacher.decode(path[: count + 1])) <= len(window.said):
        count += 1
    return path[:count]
