"""Reads a JSON body: size enforced while it arrives, nothing lenient."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from functools import partial
from typing import Any, NoReturn

from pydantic import ValidationError
from starlette.requests import Request
from teacher_proto.errors import InvalidRequestError
from teacher_proto.types import ServerLimits

from teacher_server.http.models import ScoreBody
from teacher_server.sizes import check_request_bytes
from teacher_server.validation import refuse


async def read_body(request: Request, limits: ServerLimits) -> bytes:
    """The body's bytes.

    Raises:
        InvalidRequestError: not declared as JSON, compressed, or over
            limits.max_request_bytes; reading stops there.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise refuse(
            f"the content type is {kind[:100]!r}",
            "Content-Type",
            "send application/json",
            "UNSUPPORTED_MEDIA_TYPE",
        )
    return await read_bounded(request, partial(check_request_bytes, limits=limits))


async def read_bounded(request: Request, check: Callable[[int], None]) -> bytes:
    """The body's bytes, as they are.

    Args:
        check: refuses a number of bytes; reading stops there.

    Raises:
        InvalidRequestError: compressed, or refused by ``check``.
    """
    if request.headers.get("content-encoding", "identity").lower() != "identity":
        raise refuse(
            "compressed bodies are not read",
            "Content-Encoding",
            "send the body as it is",
            "UNSUPPORTED_MEDIA_TYPE",
        )
    declared = request.headers.get("content-length", "")
    if declared.isascii() and declared.isdigit():
        check(int(declared))
    body = bytearray()
    async for chunk in request.stream():
        check(len(body) + len(chunk))
        body += chunk
    return bytes(body)


def parse_json(body: bytes) -> Any:
    """The document; raises InvalidRequestError for anything RFC 8259 does not allow."""
    try:
        text = body.decode("utf-8")
        document = json.loads(
            text,
            parse_constant=_refuse_constant,
            parse_float=_finite,
            object_pairs_hook=_unique,
        )
        if "\\ud" in text or "\\uD" in text:
            json.dumps(document, ensure_ascii=False).encode("utf-8")
    except UnicodeDecodeError as error:
        raise _malformed(f"it is not UTF-8 (byte {error.start})") from None
    except UnicodeEncodeError:
        raise _malformed("a string holds half of a surrogate pair") from None
    except RecursionError:
        raise _malformed("it is nested too deeply") from None
    except json.JSONDecodeError as error:
        raise _malformed(f"{error.msg} at character {error.pos}") from None
    except InvalidRequestError:
        raise
    except ValueError:
        raise _malformed("a number has too many digits") from None
    return document


def parse_score_body(body: bytes) -> ScoreBody:
    """Raises InvalidRequestError naming the first field that is wrong."""
    try:
        return ScoreBody.model_validate(parse_json(body))
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        message = first["msg"]
        raise refuse(
            message[:1].lower() + message[1:],
            _path(first["loc"]),
            "send what /openapi.json describes; /docs shows it",
        ) from None


def _path(location: tuple[int | str, ...]) -> str:
    path = ""
    for part in location:
        if isinstance(part, int):
            path += f"[{part}]"
        else:
            path += f".{part[:100]}" if path else part[:100]
    return path or "the request's body"


def _refuse_constant(name: str) -> NoReturn:
    raise _malformed(f"{name} is not a JSON number")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise _malformed("a number is beyond the range of a double")
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    document = dict(pairs)
    if len(document) != len(pairs):
        raise _malformed("an object has the same key twice")
    return document


def _malformed(what: str) -> InvalidRequestError:
    return refuse(what, "the request's body", "send one JSON object", "MALFORMED_JSON")
