"""JSON as RFC 8259 defines it; the extensions that ``json.loads`` accepts are refused.

The order of keys, whole numbers of any size and the difference between 1 and 1.0 are kept.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any

from teacher_proto.codec.json_pieces.long_strings import NAME, StrictJsonError, Taken, take_out

__all__ = ["StrictJsonError", "parse_json"]


def parse_json(text: str | bytes | bytearray) -> Any:
    """The document. Strings of more than ``long_strings.LONG`` bytes are read piece by piece,
    so that other threads have their turn; no key may be as long.

    Args:
        text: as bytes in UTF-8.

    Raises:
        StrictJsonError: it is not JSON, an object has a key twice, a number is not finite
            or has too many digits, a string holds half of a surrogate pair, it is nested
            too deeply for the parser, a key is too long, or bytes are not UTF-8.
    """
    if isinstance(text, str):
        taken = take_out(text.encode("utf-8", "surrogatepass"), "surrogatepass")
    else:
        taken = take_out(text)
    found = iter(taken.strings)

    def put_back(constant: str) -> str:
        string = next(found, None) if constant == NAME else None
        if string is None:  # one of the text's own
            raise StrictJsonError(f"{constant} is not a JSON number")
        return string

    try:
        document = _load(taken, put_back)
        if "\\ud" in taken.text or "\\uD" in taken.text:
            rest = _load(taken, lambda constant: "") if taken.strings else document
            json.dumps(rest, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError:
        raise StrictJsonError("a string holds half of a surrogate pair") from None
    except RecursionError:
        raise StrictJsonError("it is nested too deeply") from None
    except json.JSONDecodeError as error:
        raise StrictJsonError(f"{error.msg} at character {taken.place(error.pos)}") from None
    except StrictJsonError:
        raise
    except ValueError:
        raise StrictJsonError("a number has too many digits") from None
    return document


def _load(taken: Taken, constant: Callable[[str], str]) -> Any:
    return json.loads(
        taken.text,
        parse_constant=constant,
        parse_float=_finite,
        object_pairs_hook=_unique,
    )


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise StrictJsonError("a number is beyond the range of a double")
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    document = dict(pairs)
    if len(document) != len(pairs):
        raise StrictJsonError("an object has the same key twice")
    return document
