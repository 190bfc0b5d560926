"""The messages between the trainer and a process that judges: JSON, one object a line.

JSON is written in ASCII, so that any text of a response can be said, also one that is no Unicode.
"""

from __future__ import annotations

import json
import socket
import time
from typing import Any

# Bytes of the longest answer. A verdict is short: what is longer is none.
MAX_ANSWER = 1 << 16


class LineError(ValueError):
    """What came is no message, or a longer one than may come."""


def pack(message: dict[str, Any]) -> bytes:
    """A message as a line. Raises TypeError and ValueError for what JSON cannot say."""
    return json.dumps(message, allow_nan=False).encode("ascii") + b"\n"


def unpack(line: bytes) -> dict[str, Any]:
    """The message of a line. Raises LineError."""
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        raise LineError("an answer that is no JSON") from None
    if not isinstance(found, dict):
        raise LineError("an answer that is no object")
    return found


def exchange(
    link: socket.socket, message: bytes, seconds: float, longest: int = MAX_ANSWER
) -> dict[str, Any] | None:
    """The answer to a message; None where the other side has ended.

    Args:
        longest: bytes of the longest answer.

    Raises:
        TimeoutError: it has not come within so many seconds.
        LineError: it is none.
    """
    end = time.monotonic() + seconds
    try:
        _within(link, end)
        link.sendall(message)
        data = bytearray()
        while not data.endswith(b"\n"):
            _within(link, end)
            some = link.recv(1 << 16)
            if not some:
                return None
            data += some
            if len(data) > longest:
                raise LineError("an answer that is too long")
    except (BrokenPipeError, ConnectionResetError):
        return None
    return unpack(bytes(data))


def _within(link: socket.socket, end: float) -> None:
    left = end - time.monotonic()
    if left <= 0:
        raise TimeoutError
    link.settimeout(left)
