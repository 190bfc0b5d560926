"""Counts what a JSON text holds before any object is made of it."""

from __future__ import annotations

from dataclasses import astuple, dataclass, fields


@dataclass(frozen=True)
class JsonCounts:
    """Strings (keys included), objects, arrays, keys, and values of any kind."""

    strings: int
    objects: int
    arrays: int
    keys: int
    values: int


def beyond(text: str, most: JsonCounts) -> str:
    """The first kind of which ``text`` holds more than ``most``, such as ``objects``; empty
    when it holds none.

    Exact for JSON; of another text at least what a parser reads before it gives up.
    """
    # A backslash has its place in strings only: without escapes they end at the next quote.
    plain = text.replace("\\\\", "").replace('\\"', "") if "\\" in text else text
    strings = (plain.count('"') + 1) // 2
    if strings > most.strings:
        return "strings"
    outside = "".join(plain.split('"')[::2])
    objects, arrays = outside.count("{"), outside.count("[")
    # A comma stands between two values or members, so that each but the first of an
    # object or array has one.
    values = 1 + objects + arrays + outside.count(",")
    found = JsonCounts(strings, objects, arrays, outside.count(":"), values)
    named = zip(fields(JsonCounts), astuple(found), astuple(most), strict=True)
    return next((field.name for field, count, limit in named if count > limit), "")
