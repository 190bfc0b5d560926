"""Messages <-> bytes."""

from __future__ import annotations

from typing import TypeVar

from google.protobuf.message import DecodeError, Message

from teacher_proto.errors import LsmError

M = TypeVar("M", bound=Message)


def serialize(message: Message) -> bytes:
    """The message's bytes; equal messages give equal bytes, maps included."""
    return message.SerializeToString(deterministic=True)


def parse(data: bytes, message: M, error: type[LsmError]) -> M:
    """Reads ``data`` into the empty ``message``; raises ``error`` when it cannot."""
    try:
        message.ParseFromString(data)
    except DecodeError:
        raise not_a(data, message.DESCRIPTOR.full_name, error) from None
    return message


def not_a(data: bytes, name: str, error: type[LsmError]) -> LsmError:
    """The error for bytes that are no message of this name."""
    return error(
        f"{len(data)} bytes are not a {name}",
        fix="use the same version of the contract on both sides",
    )
