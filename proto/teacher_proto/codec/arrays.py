"""numpy arrays <-> ``Array`` messages: little-endian raw bytes, checked both ways."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from teacher_proto.errors import LsmError
from teacher_proto.v1 import array_pb2

LARGEST_DIMENSION = 2**31 - 1


@dataclass(frozen=True)
class Kind:
    """An element type of the contract and the numpy types it stands for."""

    name: str
    code: array_pb2.DataType.ValueType
    wire: np.dtype[Any]
    native: np.dtype[Any]


INT32 = Kind("int32", array_pb2.DATA_TYPE_INT32, np.dtype("<i4"), np.dtype(np.int32))
FLOAT32 = Kind("float32", array_pb2.DATA_TYPE_FLOAT32, np.dtype("<f4"), np.dtype(np.float32))
UINT8 = Kind("uint8", array_pb2.DATA_TYPE_UINT8, np.dtype("u1"), np.dtype(np.uint8))
BITMAP = Kind("bitmap", array_pb2.DATA_TYPE_BITMAP, np.dtype("u1"), np.dtype(np.bool_))


def encode_array(
    values: NDArray[Any],
    message: array_pb2.Array,
    kind: Kind,
    dimensions: int,
    where: str,
    error: type[LsmError],
) -> None:
    """Writes ``values`` into ``message``.

    The array's dtype must be the kind's own: nothing is cast. Raises ``error``
    naming ``where`` when dtype or number of dimensions differ.
    """
    if not isinstance(values, np.ndarray) or values.dtype != kind.native:
        found = values.dtype if isinstance(values, np.ndarray) else type(values).__name__
        raise error(
            f"is {found}, must be a numpy array of {kind.native}",
            where=where,
            fix=f"convert it with numpy.asarray(..., numpy.{kind.native})",
        )
    if values.ndim != dimensions:
        raise error(
            f"has shape {list(values.shape)}, must have {dimensions} dimensions", where=where
        )
    message.dtype = kind.code
    message.shape.extend(values.shape)
    if kind is BITMAP:
        message.data = np.packbits(values.reshape(-1), bitorder="little").tobytes()
    else:
        message.data = np.ascontiguousarray(values, kind.wire).tobytes()


def decode_array(
    message: array_pb2.Array, kind: Kind, dimensions: int, where: str, error: type[LsmError]
) -> NDArray[Any]:
    """The array in ``message``, read-only, over the message's own bytes where it can be.

    Raises ``error`` naming ``where`` when dtype or number of dimensions are not
    those asked for, when a dimension is negative or beyond 2**31 - 1, when the
    bytes are more or fewer than the shape says, and when a bitmap's unused bits
    are not zero.
    """
    if message.dtype != kind.code:
        raise error(f"has dtype {_name(message.dtype)}, must be {kind.name}", where=where)
    shape = tuple(message.shape)
    if len(shape) != dimensions:
        raise error(f"has shape {list(shape)}, must have {dimensions} dimensions", where=where)
    if any(size < 0 or size > LARGEST_DIMENSION for size in shape):
        raise error(
            f"has shape {list(shape)}, every dimension must be in 0..{LARGEST_DIMENSION}",
            where=where,
        )
    data = message.data
    expected = _byte_length(kind, shape)
    if len(data) != expected:
        raise error(
            f"has {len(data)} bytes, shape {list(shape)} of {kind.name} needs {expected}",
            where=where,
        )
    if kind is BITMAP:
        return _decode_bitmap(data, shape, where, error)
    values: NDArray[Any] = np.frombuffer(data, kind.wire).reshape(shape)
    if kind.wire != kind.native:
        values = values.astype(kind.native)
        values.setflags(write=False)
    return values


def _decode_bitmap(
    data: bytes, shape: Sequence[int], where: str, error: type[LsmError]
) -> NDArray[np.bool_]:
    count = math.prod(shape)
    bits = np.unpackbits(np.frombuffer(data, np.uint8), bitorder="little")
    if bits[count:].any():
        raise error(f"bits after the {count} elements are not zero", where=where)
    values = bits[:count].view(np.bool_).reshape(shape)
    values.setflags(write=False)
    return values


def _byte_length(kind: Kind, shape: Sequence[int]) -> int:
    count = math.prod(shape)
    return (count + 7) // 8 if kind is BITMAP else count * kind.wire.itemsize


def _name(code: int) -> str:
    try:
        return array_pb2.DataType.Name(array_pb2.DataType.ValueType(code))
    except ValueError:
        return f"{code} (unknown)"
