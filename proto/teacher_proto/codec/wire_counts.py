"""Counts what the bytes of a message hold before any object is made of them.

Two bytes on the wire can become an object of several hundred. Counting ends as soon as
a bound is passed, and makes no objects of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import NamedTuple

from google.protobuf.descriptor import Descriptor, FieldDescriptor

from teacher_proto.codec.wire import not_a
from teacher_proto.errors import InvalidRequestError, LsmError

# Deeper messages are refused by the parser.
DEEPEST = 100
TAG_BYTES = 5
VARINT_BYTES = 10


class Bound(NamedTuple):
    """At most so many, and the error for more."""

    most: int
    error: Callable[[], LsmError]


class TextBound(NamedTuple):
    """At most so many bytes, and the error for more: of their number, and of the name of the
    outermost field that holds them."""

    most: int
    error: Callable[[int, str], LsmError]


@dataclass(frozen=True)
class WireBounds:
    """Bounds of one message with everything inside it.

    Attributes:
        fields: occurrences of any field; an element of a packed one counts as one byte or more.
        messages: of one type, by its full name.
        texts: bytes of one string field, by its full name.
    """

    fields: Bound
    messages: Mapping[str, Bound]
    texts: Mapping[str, TextBound] = field(default_factory=dict)


class _Plan(NamedTuple):
    """Fields of a message by number: its messages, the full names of its strings, and the
    repeated numbers that may be packed."""

    name: str
    children: Mapping[int, Descriptor]
    strings: Mapping[int, str]
    packed: frozenset[int]


def check_wire(data: bytes, descriptor: Descriptor, bounds: WireBounds) -> None:
    """Raises a bound's error when ``data`` holds more, and InvalidRequestError when it is
    not a message at all."""
    try:
        _count(data, descriptor, bounds)
    except IndexError:  # it ends inside a field
        raise not_a(data, descriptor.full_name, InvalidRequestError) from None


def _count(data: bytes, descriptor: Descriptor, bounds: WireBounds) -> None:
    plan = _plan(descriptor)
    counts = dict.fromkeys(bounds.messages, 0)
    outer: list[tuple[int, _Plan]] = []
    position, end, fields, outermost = 0, len(data), 0, ""
    while True:
        if position >= end:
            if position > end:
                raise IndexError
            if not outer:
                return
            end, plan = outer.pop()
            continue
        fields += 1
        if fields > bounds.fields.most:
            raise bounds.fields.error()
        tag = data[position]
        position += 1
        if tag >= 0x80:
            tag, position = _varint(data, position - 1, TAG_BYTES)
        kind = tag & 7
        if kind == 0:
            _, position = _varint(data, position, VARINT_BYTES)
        elif kind == 2:
            length, position = _varint(data, position, TAG_BYTES)
            child = plan.children.get(tag >> 3)
            if child is None:
                name = plan.strings.get(tag >> 3)
                if name is not None:
                    text = bounds.texts.get(name)
                    if text is not None and length > text.most:
                        raise text.error(length, outermost)
                if tag >> 3 in plan.packed:
                    fields += length
                    if fields > bounds.fields.most:
                        raise bounds.fields.error()
                position += length
                continue
            if position + length > end or len(outer) == DEEPEST:
                raise IndexError
            if not outer:
                outermost = descriptor.fields_by_number[tag >> 3].name
            outer.append((end, plan))
            end, plan = position + length, _plan(child)
            bound = bounds.messages.get(plan.name)
            if bound is not None:
                counts[plan.name] += 1
                if counts[plan.name] > bound.most:
                    raise bound.error()
        elif kind in (1, 5):
            position += 8 if kind == 1 else 4
        else:
            raise IndexError  # a group, which this contract has none of


def _varint(data: bytes, position: int, most: int) -> tuple[int, int]:
    """(value, position after it); raises IndexError when it does not end in time."""
    value = shift = 0
    for place in range(position, position + most):
        byte = data[place]
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            if most == TAG_BYTES and value >> 32:
                break
            return value, place + 1
        shift += 7
    raise IndexError


@cache
def _plan(descriptor: Descriptor) -> _Plan:
    children: dict[int, Descriptor] = {}
    strings: dict[int, str] = {}
    packed: set[int] = set()
    for one in descriptor.fields:
        if one.message_type is not None:
            children[one.number] = one.message_type
        elif one.type == FieldDescriptor.TYPE_STRING:
            strings[one.number] = one.full_name
        elif one.is_repeated and one.type != FieldDescriptor.TYPE_BYTES:
            packed.add(one.number)
    return _Plan(descriptor.full_name, children, strings, frozenset(packed))
