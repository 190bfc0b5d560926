"""JSON as RFC 8259 defines it; the extensions that ``json.loads`` accepts are refused.

The order of keys, whole numbers of any size and the difference between 1 and 1.0 are kept.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

# An escaped half of a surrogate pair without its other half, where no backslash is escaped.
_HALF = re.compile(
    r"""\\u[dD](?:
    [89abAB].. (?!\\u[dD][c-fC-F])
    | [c-fC-F].. (?<!\\u[dD][89abAB]..\\u[dD]...)
    )""",
    re.VERBOSE,
)
# Characters that are searched at once, and more than a pair has: other threads have their turn.
PIECE, PAIR = 64 * 1024, 12
# Characters of an array of numbers that is read by slices, and about how many a slice has: the
# parser lets no other thread run while it reads one.
LONG, SLICE = 8 * 1024, 32 * 1024
_NUMBERS = re.compile(rf"\[[-+.\deE,\s]{{{LONG}}}")
# Stands for an array that was read by itself. No JSON has it outside of strings: of a text that
# does, one more is met than arrays were read, which is refused.
_PLACE = "NaN"


class StrictJsonError(ValueError):
    """What is wrong with a text that should be JSON."""


def parse_json(text: str | bytes | bytearray) -> Any:
    """The document.

    Args:
        text: as bytes in UTF-8.

    Raises:
        StrictJsonError: it is not JSON, an object has a key twice, a number is not finite
            or has too many digits, a string holds half of a surrogate pair, it is nested
            too deeply for the parser, or bytes are not UTF-8.
    """
    if not isinstance(text, str):
        text = _decoded(text)
    cut = _cut(text)
    try:
        document = _loads(cut.text, cut)
    except json.JSONDecodeError as error:
        raise StrictJsonError(f"{error.msg} at character {cut.position(error.pos)}") from None
    if _holds_a_half(cut.text):
        raise StrictJsonError("a string holds half of a surrogate pair")
    return document


@dataclass
class _Cut:
    """A text in which ``_PLACE`` stands for long arrays of numbers.

    Attributes:
        arrays: what stood there, in this order.
        places: where each of them begins in ``text``, and how many characters more it had.
    """

    text: str
    arrays: list[list[Any]] = field(default_factory=list)
    places: list[tuple[int, int]] = field(default_factory=list)
    taken: int = 0

    def constant(self, name: str) -> list[Any]:
        """What the parser calls for a name that JSON does not have."""
        if name != _PLACE or self.taken == len(self.arrays):
            raise StrictJsonError(f"{name} is not a JSON number")
        self.taken += 1
        return self.arrays[self.taken - 1]

    def position(self, at: int) -> int:
        """Where this character of ``text`` is in the text as it came."""
        return at + sum(more for begin, more in self.places if begin < at)


def _loads(text: str, cut: _Cut) -> Any:
    """Raises StrictJsonError, and JSONDecodeError where this text is no JSON."""
    try:
        return json.loads(
            text,
            parse_constant=cut.constant,
            parse_float=_finite,
            object_pairs_hook=_unique,
        )
    except RecursionError:
        raise StrictJsonError("it is nested too deeply") from None
    except (json.JSONDecodeError, StrictJsonError):
        raise
    except ValueError:
        raise StrictJsonError("a number has too many digits") from None


def _cut(text: str) -> _Cut:
    """Reads the long arrays that hold numbers alone; with any other text nothing is done."""
    cut, kept, length = _Cut(text), 0, 0
    parts: list[str] = []
    for begin, end in _arrays(text):
        array = _by_slices(text, begin + 1, end - 1)
        if array is None:
            continue
        parts += [text[kept:begin], _PLACE]
        length += begin - kept
        cut.places.append((length, end - begin - len(_PLACE)))
        cut.arrays.append(array)
        length, kept = length + len(_PLACE), end
    if parts:
        cut.text = "".join([*parts, text[kept:]])
    return cut


def _arrays(text: str) -> Iterator[tuple[int, int]]:
    """(first character, the one after the last) of each array that begins with many numbers."""
    quotes = counted = end = 0
    for piece in range(0, max(0, len(text) - LONG), PIECE):
        while (found := _NUMBERS.search(text, max(piece, end), piece + PIECE + LONG)) is not None:
            begin = found.start()
            quotes += _quotes(text, counted, begin)
            counted = begin
            if quotes % 2:  # it is a part of a string, which does not end in what was found
                end = found.end()
                continue
            end = text.find("]", begin) + 1
            if not end:
                return
            yield begin, end


def _quotes(text: str, begin: int, end: int) -> int:
    """How many quotes stand there that begin or end a string; a piece ends with no backslash."""
    count = 0
    while begin < end:
        stop = min(begin + PIECE, end)
        while stop < end and text[stop - 1] == "\\":
            stop += 1
        piece = text[begin:stop]
        if "\\" in piece:
            piece = piece.replace("\\\\", "").replace('\\"', "")
        count += piece.count('"')
        begin = stop
    return count


def _by_slices(text: str, begin: int, end: int) -> list[Any] | None:
    """The items between these characters; None where they are not numbers, or are wrong: then
    the parser reads the array with everything else."""
    if text.find('"', begin, end) >= 0:
        return None
    items: list[Any] = []
    while True:
        comma = text.find(",", begin + SLICE, end)
        stop = end if comma < 0 else comma
        try:
            found = _loads(f"[{text[begin:stop]}]", _Cut(""))
        except (StrictJsonError, json.JSONDecodeError):
            return None
        if not found:  # there is nothing beside a comma
            return None
        items += found
        if stop == end:
            return items
        begin = stop + 1


def _decoded(data: bytes | bytearray) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise StrictJsonError(f"it is not UTF-8 (byte {error.start})") from None


def _holds_a_half(text: str) -> bool:
    """Of a text that is JSON, in which backslashes stand in strings alone."""
    if not text.isascii():  # as a str it may hold one as it is
        try:
            text.encode("utf-8")
        except UnicodeEncodeError:
            return True
    if "\\ud" not in text and "\\uD" not in text:
        return False
    if "\\\\" in text:
        text = text.replace("\\\\", "..")
    for begin in range(0, len(text), PIECE):
        found = _HALF.search(text, begin, begin + PIECE + PAIR)
        if found is not None and found.start() < begin + PIECE:
            return True
    return False


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise StrictJsonError("a number is beyond the range of a double")
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    document = dict(pairs)
    if len(document) != len(pairs):
        raise StrictJsonError("an object has the same key twice")
    return document
