"""JSON as RFC 8259 defines it; the extensions that ``json.loads`` accepts are refused.

The order of keys, whole numbers of any size and the difference between 1 and 1.0 are kept.
"""

from __future__ import annotations

import json
import math
import re
from typing import Any, NoReturn

# An escaped half of a surrogate pair without its other half, where no backslash is escaped.
_HALF = re.compile(
    r"""\\u[dD](?:
    [89abAB].. (?!\\u[dD][c-fC-F])
    | [c-fC-F].. (?<!\\u[dD][89abAB]..\\u[dD]...)
    )""",
    re.VERBOSE,
)
# Characters that are searched at once, and more than a pair has: other threads have their turn.
PIECE, PAIR = 64 * 1024, 12


class StrictJsonError(ValueError):
    """What is wrong with a text that should be JSON."""


def parse_json(text: str | bytes | bytearray) -> Any:
    """The document.

    Args:
        text: as bytes in UTF-8.

    Raises:
        StrictJsonError: it is not JSON, an object has a key twice, a number is not finite
            or has too many digits, a string holds half of a surrogate pair, it is nested
            too deeply for the parser, or bytes are not UTF-8.
    """
    if not isinstance(text, str):
        text = _decoded(text)
    try:
        document = json.loads(
            text,
            parse_constant=_refuse_constant,
            parse_float=_finite,
            object_pairs_hook=_unique,
        )
    except RecursionError:
        raise StrictJsonError("it is nested too deeply") from None
    except json.JSONDecodeError as error:
        raise StrictJsonError(f"{error.msg} at character {error.pos}") from None
    except StrictJsonError:
        raise
    except ValueError:
        raise StrictJsonError("a number has too many digits") from None
    if _holds_a_half(text):
        raise StrictJsonError("a string holds half of a surrogate pair")
    return document


def _decoded(data: bytes | bytearray) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise StrictJsonError(f"it is not UTF-8 (byte {error.start})") from None


def _holds_a_half(text: str) -> bool:
    """Of a text that is JSON, in which backslashes stand in strings alone."""
    if not text.isascii():  # as a str it may hold one as it is
        try:
            text.encode("utf-8")
        except UnicodeEncodeError:
            return True
    if "\\ud" not in text and "\\uD" not in text:
        return False
    if "\\\\" in text:
        text = text.replace("\\\\", "..")
    for begin in range(0, len(text), PIECE):
        found = _HALF.search(text, begin, begin + PIECE + PAIR)
        if found is not None and found.start() < begin + PIECE:
            return True
    return False


def _refuse_constant(name: str) -> NoReturn:
    raise StrictJsonError(f"{name} is not a JSON number")


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
