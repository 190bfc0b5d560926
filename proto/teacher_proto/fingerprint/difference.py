"""Which of the parts of two tokenizers differ, and where first."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from itertools import zip_longest
from typing import Any

from teacher_proto.fingerprint.parts import FLAGS, PARTS

# Characters of a value in a message.
SHOWN = 90
# Of these, how many before the first one that differs.
BEFORE = 20
NONE = "nothing"


def part_differences(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """One phrase for each part that differs, with the first difference: what ``one`` has,
    then what ``other`` has. Both are of ``canonical_parts``; empty where they are equal."""
    describe: dict[str, Callable[[Any, Any], str]] = {
        "model": _settings,
        "vocabulary": _vocabulary,
        "merges": _in_order,
        "normalizer": _in_order,
        "pre_tokenizer": _in_order,
        "added_tokens": _added_tokens,
    }
    return [
        f"{PARTS[part]} ({describe[part](one[part], other[part])})"
        for part in PARTS
        if one[part] != other[part]
    ]


def _settings(one: Mapping[str, Any], other: Mapping[str, Any]) -> str:
    names = sorted(n for n in {*one, *other} if one.get(n) != other.get(n))
    return ", ".join(f"{n}: {_pair(one.get(n), other.get(n))}" for n in names)


def _vocabulary(one: Sequence[Any], other: Sequence[Any]) -> str:
    sizes = f"{len(one)} and {len(other)} entries"
    if _is_by_id(one) and _is_by_id(other):
        known, others = dict(one), dict(other)
        index = min(i for i in {*known, *others} if known.get(i) != others.get(i))
        return f"{sizes}; id {index}: {_pair(known.get(index), others.get(index))}"
    return f"{sizes}; {_first(one, other)}"


def _is_by_id(entries: Sequence[Any]) -> bool:
    return all(isinstance(key, int) for key, _ in entries[:1])


def _in_order(one: Sequence[Any] | None, other: Sequence[Any] | None) -> str:
    return _first(one or (), other or ())


def _first(one: Sequence[Any], other: Sequence[Any]) -> str:
    pairs = enumerate(zip_longest(one, other))
    place, (a, b) = next((p, pair) for p, pair in pairs if pair[0] != pair[1])
    of = "" if max(len(one), len(other)) == 1 else f"number {place + 1}: "
    return f"{of}{_pair(a, b)}"


def _added_tokens(one: Sequence[Any], other: Sequence[Any]) -> str:
    known, others = ({row[1]: row for row in rows} for rows in (one, other))
    differing = [text for text in {**known, **others} if known.get(text) != others.get(text)]
    first = _show(differing[0])
    a, b = known.get(differing[0]), others.get(differing[0])
    more = "" if len(differing) == 1 else f"; {len(differing)} of them differ"
    return f"{first}: {_token(a)} and {_token(b)}{more}"


def _token(row: Sequence[Any] | None) -> str:
    if row is None:
        return "not there"
    flags = [name for name, given in zip(FLAGS, row[2:], strict=True) if given]
    return ", ".join([f"id {row[0]}", *flags])


def _pair(one: object, other: object) -> str:
    """Both values; of two components of one type only the fields that differ."""
    if isinstance(one, dict) and isinstance(other, dict) and one.get("type") == other.get("type"):
        return f"{one.get('type')} with {_settings(one, other)}"
    texts = _text(one), _text(other)
    same = next((i for i, (a, b) in enumerate(zip(*texts, strict=False)) if a != b), 0)
    start = max(same - BEFORE, 0) if max(map(len, texts)) > SHOWN else 0
    return " and ".join(_cut(text, start) for text in texts)


def _show(value: object) -> str:
    return _cut(_text(value), 0)


def _text(value: object) -> str:
    if isinstance(value, dict):
        value = {"type": value.get("type"), **dict(sorted(value.items()))}
    return NONE if value is None else json.dumps(value, ensure_ascii=True)


def _cut(text: str, start: int) -> str:
    after = "..." if len(text) > start + SHOWN else ""
    return f"{'...' if start else ''}{text[start : start + SHOWN]}{after}"
