"""Deep equality of the contract's dataclasses, arrays compared by dtype, shape and bytes.

Rows appear by the names of their arrays in v1/score.proto, absent ones as None."""

from __future__ import annotations

import dataclasses
import enum
import json
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from teacher_proto.codec.reply import ARRAYS
from teacher_proto.types import ContinuationScores


def plain(value: Any) -> Any:
    """The value as JSON would hold it; arrays as {dtype, shape, values}."""
    if isinstance(value, np.ndarray):
        return {
            "dtype": str(value.dtype),
            "shape": list(value.shape),
            "values": [_number(item) for item in value.reshape(-1).tolist()],
        }
    if isinstance(value, ContinuationScores):
        fields = [f.name for f in dataclasses.fields(value) if f.name != "rows"]
        arrays = dict.fromkeys(ARRAYS) | value.rows.arrays()
        parts = {name: getattr(value, name) for name in fields} | arrays
        return {"type": type(value).__name__, **{name: plain(part) for name, part in parts.items()}}
    if dataclasses.is_dataclass(value):
        return {
            "type": type(value).__name__,
            **{
                field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)
            },
        }
    if isinstance(value, enum.Enum):
        return value.name
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return _number(value)


def same(left: Any, right: Any) -> bool:
    """Whether both hold the same values in the same order of keys, NaN equal to NaN,
    -0.0 unlike 0.0, 1 unlike 1.0."""
    return type(left) is type(right) and json.dumps(plain(left)) == json.dumps(plain(right))


def _number(value: Any) -> Any:
    """Floats that compare unlike they print (NaN, infinities, both zeros) as text."""
    if isinstance(value, float) and (not math.isfinite(value) or value == 0.0):
        return repr(value)
    return value
