"""Texts of the realignment benchmark: what the n-gram teacher learns, and what is realigned.

There are two sets with nothing in common: one for choosing settings and for tests, one for
the results that are reported. The texts are on the machine (documentation, code, licences),
fetched once (Chinese manual pages of Debian) or made here.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass

from benchmarks.realign.texts import chinese, marked, numbers, scripts, written

MAKERS: dict[str, Callable[[bool], str]] = {
    "prose": written.prose,
    "licence": written.licence,
    "code": written.code,
    "digits": numbers.digits,
    "json": numbers.json,
    "table": numbers.table,
    "aligned": numbers.aligned,
    "layout": numbers.layout,
    "chinese": chinese.made_up,
    "translated": chinese.translated,
    "latex": marked.latex,
    "calls": marked.calls,
    "specials": marked.specials,
    "emoji": scripts.emoji,
    "rtl": scripts.right_to_left,
}


@dataclass(frozen=True)
class Text:
    """``learnt`` is what the n-gram teacher counts; ``held_out`` continues in its manner."""

    name: str
    learnt: str
    held_out: str


def texts(size: int, *, tuning: bool = False, names: Collection[str] = tuple(MAKERS)) -> list[Text]:
    """Each text's held-out part has about ``size`` characters."""
    made = []
    for name, make in MAKERS.items():
        if name in names:
            text = make(tuning)
            made.append(Text(name, text[:-size], text[-size:]))
    return made
