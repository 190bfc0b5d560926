"""Counts what a JSON text holds before any object is made of it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields

# Bytes that are counted at once. Other threads have their turn in between.
PIECE = 64 * 1024


@dataclass(frozen=True)
class JsonCounts:
    """Strings (keys included), objects, arrays, keys, and values of any kind."""

    strings: int
    objects: int
    arrays: int
    keys: int
    values: int


def beyond(text: str | bytes | bytearray, most: JsonCounts) -> str:
    """The first kind of which ``text`` holds more than ``most``, such as ``objects``; empty
    when it holds none. What follows the place where that shows is not looked at.

    Exact for JSON; of another text at least what a parser reads before it gives up.
    """
    found = dict.fromkeys((field.name for field in fields(JsonCounts)), 0)
    found["values"] = 1
    quotes = 0
    for plain in _without_escapes(text):
        parts = plain.split(b'"')
        outside = b"".join(parts[quotes % 2 :: 2])
        quotes += len(parts) - 1
        objects, arrays = outside.count(b"{"), outside.count(b"[")
        found["strings"] = (quotes + 1) // 2
        found["objects"] += objects
        found["arrays"] += arrays
        found["keys"] += outside.count(b":")
        # A comma stands between two values or members, so that each but the first of an
        # object or array has one.
        found["values"] += objects + arrays + outside.count(b",")
        for kind, count in found.items():
            if count > getattr(most, kind):
                return kind
    return ""


def _without_escapes(text: str | bytes | bytearray) -> Iterator[bytes]:
    """The bytes in pieces, without escaped quotes and backslashes. A backslash has its place in
    strings only: without escapes they end at the next quote."""
    odd = b""  # a backslash whose other half is in the next piece
    for begin in range(0, len(text), PIECE):
        some = text[begin : begin + PIECE]
        piece = odd + (some.encode("utf-8", "surrogatepass") if isinstance(some, str) else some)
        odd = b""
        if b"\\" in piece:
            if (len(piece) - len(piece.rstrip(b"\\"))) % 2:
                piece, odd = piece[:-1], b"\\"
            piece = piece.replace(b"\\\\", b"").replace(b'\\"', b"")
        yield bytes(piece)
