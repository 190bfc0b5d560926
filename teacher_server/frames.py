"""The messages between the server and its child processes: JSON and raw arrays.

A message is 16 bytes (length of the header, length of everything after it, little-endian
uint64), a header in JSON that names the data type and shape of each array, and the arrays'
little-endian bytes in that order. Each part begins at a multiple of 8 bytes.
"""

from __future__ import annotations

import json
import math
import socket
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

# Bytes of a message, and of its header. The largest hold a rollout's rows, or the texts of
# a reply.
MAX_BYTES = 1 << 31
MAX_HEADER_BYTES = 1 << 26
MAX_ARRAYS = 1 << 16
PREFIX = struct.Struct("<QQ")
DTYPES = frozenset(
    ("|b1", "|u1", "|i1", "<i2", "<u2", "<i4", "<u4", "<i8", "<u8", "<f2", "<f4", "<f8")
)


class FrameError(ValueError):
    """What came is no message, or a larger one than may come."""


@dataclass(frozen=True)
class Frame:
    """One message.

    Attributes:
        kind: what it asks for or answers.
        header: what JSON can say; numbers are finite.
        arrays: by name; those of an unpacked message are read-only.
    """

    kind: str
    header: dict[str, Any] = field(default_factory=dict)
    arrays: dict[str, Array] = field(default_factory=dict)

    @property
    def nbytes(self) -> int:
        """Bytes of its arrays."""
        return sum(array.nbytes for array in self.arrays.values())

    def array(self, name: str, dtype: Any, *shape: int | None) -> Array:
        """An array that must have this data type and shape; None stands for any length.

        Raises:
            FrameError: it is not there, or is another one.
        """
        found = self.arrays.get(name)
        if found is None or found.dtype != np.dtype(dtype) or found.ndim != len(shape):
            raise FrameError(f"{self.kind}: {name} is no {np.dtype(dtype)} of {len(shape)} axes")
        if any(n is not None and n != length for n, length in zip(shape, found.shape, strict=True)):
            raise FrameError(f"{self.kind}: {name} has shape {found.shape}, not {shape}")
        return found

    def integer(self, name: str, low: int = 0, high: int = 1 << 62) -> int:
        """An integer of the header in low..high; raises FrameError."""
        found = self.header.get(name)
        if type(found) is not int or not low <= found <= high:
            raise FrameError(f"{self.kind}: {name} is no integer in {low}..{high}")
        return found

    def text(self, name: str, longest: int = 4096) -> str:
        """A string of the header of at most ``longest`` characters; raises FrameError."""
        found = self.header.get(name)
        if not isinstance(found, str) or len(found) > longest:
            raise FrameError(f"{self.kind}: {name} is no text of at most {longest} characters")
        return found


def pack(frame: Frame) -> bytes:
    """A message as bytes; raises as ``parts``."""
    return b"".join(parts(frame))


def parts(frame: Frame) -> list[bytes | memoryview]:
    """A message as bytes that follow each other, of which the arrays' are their own.

    Raises:
        FrameError: an array is of a type that is not sent, or the message is too large.
        ValueError, TypeError: the header cannot be JSON.
    """
    arrays = {name: np.ascontiguousarray(array) for name, array in frame.arrays.items()}
    arrays = {name: a.astype(a.dtype.newbyteorder("<"), copy=False) for name, a in arrays.items()}
    described = [[name, array.dtype.str, list(array.shape)] for name, array in arrays.items()]
    if any(dtype not in DTYPES for _, dtype, _ in described):
        raise FrameError(f"{frame.kind}: {described} has a type that is not sent")
    header = json.dumps([frame.kind, frame.header, described], allow_nan=False).encode()
    header += b" " * (-len(header) % 8)
    found: list[bytes | memoryview] = [header]
    for array in arrays.values():
        found += [array.reshape(-1).view(np.uint8).data, bytes(-array.nbytes % 8)]
    length = sum(len(part) for part in found)
    check_prefix(prefix := PREFIX.pack(len(header), length), MAX_BYTES)
    return [prefix + header, *found[1:]]


def check_prefix(
    prefix: bytes, max_bytes: int = MAX_BYTES, max_header_bytes: int = MAX_HEADER_BYTES
) -> int:
    """How many bytes follow a message's first 16; raises FrameError for too many."""
    header, length = PREFIX.unpack(prefix)
    if header > min(length, max_header_bytes) or length > max_bytes:
        raise FrameError(f"a message of {length} bytes with a header of {header}")
    found: int = length
    return found


def unpack(data: bytes | bytearray | memoryview) -> Frame:
    """The message that ``pack`` wrote; raises FrameError for anything else."""
    view = memoryview(data).toreadonly()
    if len(view) < PREFIX.size:
        raise FrameError(f"a message of {len(view)} bytes")
    if check_prefix(bytes(view[: PREFIX.size]), len(view)) != len(view) - PREFIX.size:
        raise FrameError("a message of another length than it says")
    start = PREFIX.size + PREFIX.unpack(view[: PREFIX.size])[0]
    try:
        kind, header, described = json.loads(bytes(view[PREFIX.size : start]))
    except (ValueError, TypeError, RecursionError) as error:
        raise FrameError(f"a header that is no JSON: {type(error).__name__}") from None
    if type(kind) is not str or type(header) is not dict or type(described) is not list:
        raise FrameError("a header of another form")
    if len(described) > MAX_ARRAYS:
        raise FrameError(f"{len(described)} arrays")
    arrays: dict[str, Array] = {}
    for one in described:
        name, dtype, shape = _description(one)
        size = math.prod(shape)
        length = size * dtype.itemsize
        if start + length + (-length % 8) > len(view):
            raise FrameError(f"{name} is longer than its message")
        array = np.frombuffer(view, dtype, size, start).reshape(shape)
        if dtype == np.bool_ and array.view(np.uint8).max(initial=0) > 1:
            raise FrameError(f"{name} holds what is no boolean")
        arrays[name] = array
        start += length + (-length % 8)
    if start != len(view):
        raise FrameError(f"{len(view) - start} bytes belong to nothing")
    return Frame(kind, header, arrays)


def _description(one: Any) -> tuple[str, np.dtype[Any], tuple[int, ...]]:
    """Name, data type and shape out of the header."""
    if type(one) is not list or len(one) != 3:
        raise FrameError("an array without name, type and shape")
    name, dtype, shape = one
    if type(name) is not str or dtype not in DTYPES or type(shape) is not list or len(shape) > 4:
        raise FrameError("an array of an unknown type or shape")
    if any(type(n) is not int or not 0 <= n <= MAX_BYTES for n in shape):
        raise FrameError(f"{name} has a length that none can have")
    return name, np.dtype(dtype), tuple(shape)


def send(to: socket.socket, frame: Frame) -> None:
    """Sends a message; raises OSError where nobody reads it."""
    to.sendall(pack(frame))


def receive(of: socket.socket, max_bytes: int = MAX_BYTES) -> Frame | None:
    """The next message; None when the other side has closed.

    Raises:
        FrameError: what comes is no message, or ends within one.
    """
    prefix = bytearray(PREFIX.size)
    if not _fill(of, memoryview(prefix), may_end=True):
        return None
    data = bytearray(PREFIX.size + check_prefix(bytes(prefix), max_bytes))
    data[: PREFIX.size] = prefix
    _fill(of, memoryview(data)[PREFIX.size :], may_end=False)
    return unpack(data)


def _fill(of: socket.socket, into: memoryview, *, may_end: bool) -> bool:
    done = 0
    while done < len(into):
        count = of.recv_into(into[done:])
        if not count:
            if may_end and not done:
                return False
            raise FrameError("the other side closed within a message")
        done += count
    return True


def texts_array(texts: list[str]) -> Mapping[str, Array]:
    """Texts as two arrays: ``text``, their UTF-8 bytes in a row, and ``text_bytes``, int64,
    how many of them each has. What is no Unicode comes as it is."""
    encoded = [text.encode("utf-8", "surrogatepass") for text in texts]
    return {
        "text": np.frombuffer(b"".join(encoded), np.uint8),
        "text_bytes": np.array([len(one) for one in encoded], np.int64),
    }


def texts_of(frame: Frame) -> list[str]:
    """The texts of ``texts_array``; raises FrameError."""
    data = frame.array("text", np.uint8, None).tobytes()
    lengths = frame.array("text_bytes", np.int64, None)
    if (lengths < 0).any() or int(lengths.sum()) != len(data):
        raise FrameError(f"{frame.kind}: the texts are not as long as they should be")
    ends = np.cumsum(lengths).tolist()
    try:
        return [
            data[end - length : end].decode("utf-8", "surrogatepass")
            for end, length in zip(ends, lengths.tolist(), strict=True)
        ]
    except UnicodeDecodeError:
        raise FrameError(f"{frame.kind}: a text is no UTF-8") from None
