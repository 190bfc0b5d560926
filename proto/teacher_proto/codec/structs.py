"""Plain mappings <-> ``google.protobuf.Struct``, checked both ways.

A Struct holds null, booleans, doubles, strings, lists and maps. A whole number
up to 2**53 comes back as int, whether it went in as int or float.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from google.protobuf import struct_pb2

from teacher_proto.errors import LsmError

LARGEST_EXACT = 2**53
# A parser refuses messages nested 100 deep; one level of a Struct takes three.
DEEPEST = 24


def encode_struct(
    values: Mapping[str, Any], message: struct_pb2.Struct, where: str, error: type[LsmError]
) -> None:
    """Writes ``values`` into ``message``.

    Raises ``error`` for keys that are not text, for values a Struct cannot hold
    exactly (NaN, infinities, integers beyond 2**53, other types) and for nesting
    beyond DEEPEST levels.
    """
    _encode_map(values, message, where, error, 1)


def decode_struct(message: struct_pb2.Struct, where: str, error: type[LsmError]) -> dict[str, Any]:
    """The mapping in ``message``; raises ``error`` for a value without a kind, for
    numbers that are not finite and for nesting beyond DEEPEST levels."""
    return _decode_map(message, where, error, 1)


def _encode_map(
    values: Mapping[str, Any],
    message: struct_pb2.Struct,
    where: str,
    error: type[LsmError],
    depth: int,
) -> None:
    for key, value in values.items():
        if not isinstance(key, str):
            raise error(f"key {key!r} is not text", where=where)
        inner = f"{where}.{key}"
        check_text(key, inner, error)
        _encode_value(value, message.fields[key], inner, error, depth)


def _encode_value(
    value: Any, message: struct_pb2.Value, where: str, error: type[LsmError], depth: int
) -> None:
    if depth > DEEPEST:
        raise error(f"is nested deeper than {DEEPEST} levels", where=where)
    if value is None:
        message.null_value = struct_pb2.NULL_VALUE
    elif isinstance(value, bool):
        message.bool_value = value
    elif isinstance(value, int | float):
        exact = abs(value) <= LARGEST_EXACT if isinstance(value, int) else math.isfinite(value)
        if not exact:
            raise error(
                f"{value!r} cannot be carried exactly",
                where=where,
                fix="use finite numbers, integers up to 2**53, or text",
            )
        message.number_value = value
    elif isinstance(value, str):
        check_text(value, where, error)
        message.string_value = value
    elif isinstance(value, Mapping):
        message.struct_value.SetInParent()
        _encode_map(value, message.struct_value, where, error, depth + 1)
    elif isinstance(value, list | tuple):
        message.list_value.SetInParent()
        for index, item in enumerate(value):
            inner = message.list_value.values.add()
            _encode_value(item, inner, f"{where}[{index}]", error, depth + 1)
    else:
        raise error(
            f"{type(value).__name__} cannot be carried",
            where=where,
            fix="use None, booleans, numbers, text, lists and mappings",
        )


def _decode_map(
    message: struct_pb2.Struct, where: str, error: type[LsmError], depth: int
) -> dict[str, Any]:
    return {
        key: _decode_value(value, f"{where}.{key}", error, depth)
        for key, value in message.fields.items()
    }


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
