"""A document of rows for a terminal."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Iterator, Mapping
from typing import Any

from rich.table import Table
from rich.text import Text

# Log-probabilities down to these have the colour beside them.
COLOURS = ((-0.7, "green"), (-2.3, "default"), (-4.6, "yellow"), (-math.inf, "red"))
SHOWN = 4
SPACES = {" ": "·", "\n": "⏎", "\t": "⇥", "\r": "␍"}


def tables(document: Mapping[str, Any]) -> Iterator[Table | Text]:
    """One table for each sequence; of two sequences of the same tokens one with both."""
    sequences = document["sequences"]
    if len(sequences) == 2 and _ids(sequences[0]) == _ids(sequences[1]):
        yield from _difference(*sequences)
        return
    for sequence in sequences:
        yield _table(sequence)


def shown(text: str | None) -> str:
    """A token's text with its white space visible, and nothing that a terminal would obey."""
    if text is None:
        return "∅"
    return "".join(
        SPACES.get(c) or (f"⟨U+{ord(c):04X}⟩" if unicodedata.category(c)[0] in "CZ" else c)
        for c in text
    )


def _ids(sequence: Mapping[str, Any]) -> list[int]:
    return [token["id"] for token in sequence["tokens"]]


def _table(sequence: Mapping[str, Any]) -> Table:
    tokens = sequence["tokens"]
    realigned = any(token.get("class") for token in tokens)
    table = _new(sequence["name"], "token", "log p", "rank", *(["class"] if realigned else []))
    table.add_column("the teacher's choices")
    table.add_column("beyond", justify="right")
    for at, token in enumerate(tokens):
        own = [_class(token)] if realigned else []
        table.add_row(
            str(at),
            Text(shown(token.get("text"))),
            _number(token.get("log_prob")),
            _rank(token),
            *own,
            _choices(token),
            _percent(token.get("log_tail")),
        )
    return table


def _difference(left: Mapping[str, Any], right: Mapping[str, Any]) -> Iterator[Table | Text]:
    table = _new(f"A: {left['name']}   B: {right['name']}", "token", "A log p", "B log p", "A - B")
    table.add_column("A's choices")
    table.add_column("B's choices")
    gaps = []
    for at, (a, b) in enumerate(zip(left["tokens"], right["tokens"], strict=True)):
        one, other = a.get("log_prob"), b.get("log_prob")
        gap = None if one is None or other is None else one - other
        if gap is not None:
            gaps.append(gap)
        table.add_row(
            str(at),
            Text(shown(a.get("text"))),
            _number(one),
            _number(other),
            Text("-" if gap is None else f"{gap:+.4f}", "bold" if abs(gap or 0) > 0.1 else ""),
            _choices(a),
            _choices(b),
        )
    yield table
    if gaps:
        largest, mean = max(map(abs, gaps)), sum(gaps) / len(gaps)
        yield Text(f"{len(gaps)} rows: A - B is {mean:+.4f} on average, {largest:.4f} at most")


def _new(title: str, *columns: str) -> Table:
    table = Table(box=None, pad_edge=False, title=Text(shown(title)), title_justify="left")
    table.add_column("#", justify="right")
    for name in columns:
        table.add_column(name, justify="left" if name in ("token", "class") else "right")
    return table


def _number(log_prob: float | None) -> Text:
    if log_prob is None:
        return Text("-")
    return Text(f"{log_prob:.3f}", next(colour for least, colour in COLOURS if log_prob >= least))


def _rank(token: Mapping[str, Any]) -> str:
    ids = [entry[0] for entry in token.get("top") or ()]
    return str(ids.index(token["id"]) + 1) if token["id"] in ids else "-"


def _class(token: Mapping[str, Any]) -> Text:
    reason = shown(token["reason"].lower()) if token.get("reason") else ""
    name = shown((token.get("class") or "-").lower())
    return Text(f"{name} ({reason})" if reason else name, "yellow" if reason else "")


def _choices(token: Mapping[str, Any]) -> Text:
    text = Text(overflow="fold")
    for number, (id_, piece, log_prob) in enumerate((token.get("top") or ())[:SHOWN]):
        text.append("  " if number else "")
        text.append(f"{shown(piece)} {_percent(log_prob)}", "bold" if id_ == token["id"] else "")
    return text


def _percent(log_prob: float | None) -> str:
    return "-" if log_prob is None else f"{math.exp(log_prob):.1%}"
