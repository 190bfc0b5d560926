"""Long strings of a JSON text, read piece by piece.

``json.loads`` holds the interpreter until it has read all of its text: 20 ms for a string of
16 MiB. Other threads, an event loop among them, have their turn between two pieces.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise

# Bytes of a string that is read piece by piece, and of one piece.
LONG = 16 * 1024
# What stands in the text for a long string: ``json.loads`` calls a hook where it finds it.
NAME = "NaN"
# What a string holds, as far as escapes are whole, and both of a pair of surrogates. Ends at a
# quote, or before what no string may hold.
_INSIDE = re.compile(
    rb"""(?:
    [^"\\\x00-\x1f]++
    | \\["\\/bfnrt]
    | \\u(?![dD][89a-fA-F])[0-9a-fA-F]{4}
    | \\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}
    )*+""",
    re.VERBOSE,
)
_KEY = re.compile(rb"[ \t\r\n]*:")


class StrictJsonError(ValueError):
    """What is wrong with a text that should be JSON."""


@dataclass
class Taken:
    """A text without its long strings.

    Attributes:
        text: with ``NAME`` instead of each.
        strings: what they say, in order.
    """

    text: str = ""
    strings: list[str] = field(default_factory=list)
    _places: list[tuple[int, int]] = field(default_factory=list)

    def place(self, position: int) -> int:
        """The character of the whole text at which ``text[position]`` stands."""
        return position + sum(more for at, more in self._places if at < position)

    def put(self, outside: str) -> None:
        self.text += outside

    def take(self, parts: list[str], characters: int) -> None:
        """One long string, of so many characters as it is written, quotes included."""
        self._places.append((len(self.text), characters - len(NAME)))
        self.strings.append("".join(parts))
        self.text += NAME


def take_out(data: bytes | bytearray, errors: str = "strict") -> Taken:
    """The text of ``data``, in UTF-8, without its long strings.

    Args:
        errors: of decoding.

    Raises:
        StrictJsonError: a key is long, a long string is not JSON or holds half of a surrogate
            pair, or ``data`` is not UTF-8.
    """
    taken = Taken()
    done = 0
    for stops in _long(data):
        begin, end = stops[0], stops[-1]
        taken.put(_decoded(data, done, begin - 1, errors))
        written = [_decoded(data, *piece, errors) for piece in pairwise(stops)]
        characters = 2 + sum(map(len, written))
        taken.take([json.loads(f'"{piece}"') for piece in written], characters)
        done = end + 1
    taken.put(_decoded(data, done, len(data), errors))
    return taken


def _long(data: bytes | bytearray) -> Iterator[list[int]]:
    """Of each long string where its pieces begin, and where the last one ends, without quotes."""
    position = 0
    while len(data) - position > LONG:
        begin = data.find(b'"', position) + 1
        if begin == 0:
            return
        stops = [begin]
        while (stop := _stop(data, stops[-1])) > stops[-1]:
            stops.append(stop)
        end = stops[-1]
        long = end - begin > LONG
        if data[end : end + 1] != b'"':
            if long:
                raise StrictJsonError(f"a string holds what no string may hold at byte {end}")
            return  # the parser tells what is wrong with it
        if long:
            if _KEY.match(data, end + 1):
                raise StrictJsonError(f"a key has more than {LONG} bytes")
            yield stops
        position = end + 1


def _stop(data: bytes | bytearray, position: int) -> int:
    """Where a piece of a string ends that begins at ``position``."""
    found = _INSIDE.match(data, position, position + LONG)
    assert found is not None  # it may be empty
    stop = found.end()
    if stop == position + LONG:  # at the beginning of a character
        while stop > position and data[stop : stop + 1] and 0x80 <= data[stop] < 0xC0:
            stop -= 1
    return stop


def _decoded(data: bytes | bytearray, begin: int, end: int, errors: str) -> str:
    try:
        return str(memoryview(data)[begin:end], "utf-8", errors)
    except UnicodeDecodeError as error:
        raise StrictJsonError(f"it is not UTF-8 (byte {begin + error.start})") from None
