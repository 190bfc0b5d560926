"""The values that a chat template is given: checked, and as ``google.protobuf.Struct``.

A Struct forgets the order of keys and whether a number was whole, and a template may
print both. Only what it keeps goes into one (``struct_keeps``); the rest travels as JSON
(``chat_json``).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from google.protobuf import struct_pb2

from teacher_proto.errors import LsmError
from teacher_proto.types import ABSENT, Content

LARGEST_EXACT = 2**53
# A parser refuses messages nested 100 deep; one level of a Struct takes three.
DEEPEST = 24
# Of a key in an error's path, characters.
SHOWN = 100


def plain_mapping(
    values: Mapping[str, Any], where: str, error: type[LsmError], depth: int = 1
) -> dict[str, Any]:
    """A copy in dicts and lists, in the same order.

    Raises ``error`` for keys that are not text, for values JSON cannot hold (NaN,
    infinities, lone surrogates, other types) and for nesting beyond DEEPEST levels.
    """
    copy = {}
    for key, value in values.items():
        if not isinstance(key, str):
            raise error(f"key {key!r} is not text", where=where)
        inner = _inner(where, key)
        copy[check_text(key, inner, error)] = _plain_value(value, inner, error, depth)
    return copy


def plain_content(content: Any, role: str, where: str, error: type[LsmError]) -> Content:
    """What a message of this role says, copied into plain values.

    Raises ``error`` for anything but a text, a list of parts (objects), or, in an
    assistant's turn, null or no content.
    """
    if isinstance(content, str):
        return check_text(content, where, error)
    if content is None or content is ABSENT:
        if role == "assistant":
            return None if content is None else ABSENT
        raise error(
            "must be a text",
            where=where,
            fix="give a text, which may be empty: only an assistant's turn may have no content",
        )
    if isinstance(content, list | tuple) and all(isinstance(part, Mapping) for part in content):
        return [
            plain_mapping(part, f"{where}[{index}]", error, 2) for index, part in enumerate(content)
        ]
    raise error("must be a text or a list of parts, which are objects", where=where)


def _plain_value(value: Any, where: str, error: type[LsmError], depth: int) -> Any:
    if depth > DEEPEST:
        raise error(f"is nested deeper than {DEEPEST} levels", where=where)
    if value is None or isinstance(value, int):
        return value
    if isinstance(value, float):
        if not math.isfinite(value):
            raise error(f"{value!r} is not a finite number", where=where)
        return value
    if isinstance(value, str):
        return check_text(value, where, error)
    if isinstance(value, Mapping):
        return plain_mapping(value, where, error, depth + 1)
    if isinstance(value, list | tuple):
        return [
            _plain_value(item, f"{where}[{index}]", error, depth + 1)
            for index, item in enumerate(value)
        ]
    raise error(
        f"{type(value).__name__} cannot be carried",
        where=where,
        fix="use None, booleans, numbers, text, lists and mappings",
    )


def struct_keeps(value: Any) -> bool:
    """Whether a plain value comes out of a Struct as it went in: at most one key in every
    object, no whole number that is a float, no integer beyond 2**53."""
    if isinstance(value, dict):
        return len(value) <= 1 and all(struct_keeps(inner) for inner in value.values())
    if isinstance(value, list):
        return all(struct_keeps(inner) for inner in value)
    if isinstance(value, float):
        return not value.is_integer()
    return not isinstance(value, int) or abs(value) <= LARGEST_EXACT


def decode_struct(message: struct_pb2.Struct, where: str, error: type[LsmError]) -> dict[str, Any]:
    """The mapping in ``message``, its keys sorted: the map itself has another order in
    every process. A whole number up to 2**53 comes back as int.

    Raises ``error`` for a value without a kind, for numbers that are not finite and for
    nesting beyond DEEPEST levels.
    """
    return _decode_map(message, where, error, 1)


def _decode_map(
    message: struct_pb2.Struct, where: str, error: type[LsmError], depth: int
) -> dict[str, Any]:
    return {
        key: _decode_value(message.fields[key], _inner(where, key), error, depth)
        for key in sorted(message.fields)
    }


def _inner(where: str, key: str) -> str:
    return f"{where}.{key[:SHOWN]}"


def _decode_value(message: struct_pb2.Value, where: str, error: type[LsmError], depth: int) -> Any:
    if depth > DEEPEST:
        raise error(f"is nested deeper than {DEEPEST} levels", where=where)
    match message.WhichOneof("kind"):
        case "null_value":
            return None
        case "bool_value":
            return message.bool_value
        case "string_value":
            return message.string_value
        case "number_value":
            return _number(message.number_value, where, error)
        case "struct_value":
            return _decode_map(message.struct_value, where, error, depth + 1)
        case "list_value":
            return [
                _decode_value(item, f"{where}[{index}]", error, depth + 1)
                for index, item in enumerate(message.list_value.values)
            ]
        case _:
            raise error("holds no value", where=where)


def _number(value: float, where: str, error: type[LsmError]) -> int | float:
    if not math.isfinite(value):
        raise error(f"{value!r} is not a finite number", where=where)
    return int(value) if value.is_integer() and abs(value) <= LARGEST_EXACT else value


def check_text(text: str, where: str, error: type[LsmError]) -> str:
    """``text`` itself; raises ``error`` when it is not text that UTF-8 can carry."""
    if not isinstance(text, str):
        raise error(f"is {type(text).__name__}, must be text", where=where)
    try:
        text.encode()
    except UnicodeEncodeError as failure:
        raise error(
            f"holds a lone surrogate at character {failure.start}, which UTF-8 cannot carry",
            where=where,
            fix="clean the text, for example text.encode('utf-8', 'replace').decode()",
        ) from None
    return text
