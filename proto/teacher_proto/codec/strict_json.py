"""JSON as RFC 8259 defines it; the extensions that ``json.loads`` accepts are refused.

The order of keys, whole numbers of any size and the difference between 1 and 1.0 are kept.
"""

from __future__ import annotations

import json
import math
from typing import Any, NoReturn


class StrictJsonError(ValueError):
    """What is wrong with a text that should be JSON."""


def parse_json(text: str) -> Any:
    """The document.

    Raises:
        StrictJsonError: it is not JSON, an object has a key twice, a number is not finite
            or has too many digits, a string holds half of a surrogate pair, or it is
            nested too deeply for the parser.
    """
    try:
        document = json.loads(
            text,
            parse_constant=_refuse_constant,
            parse_float=_finite,
            object_pairs_hook=_unique,
        )
        if "\\ud" in text or "\\uD" in text:
            json.dumps(document, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError:
        raise StrictJsonError("a string holds half of a surrogate pair") from None
    except RecursionError:
        raise StrictJsonError("it is nested too deeply") from None
    except json.JSONDecodeError as error:
        raise StrictJsonError(f"{error.msg} at character {error.pos}") from None
    except StrictJsonError:
        raise
    except ValueError:
        raise StrictJsonError("a number has too many digits") from None
    return document


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
