"""Documents of rows to look at: what the page draws (docs/inspect.md).

A document holds sequences of tokens with what is known of each. It is plain JSON; a field that
is left out or null is not known.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

from teacher_proto.errors import InvalidRequestError

FORMAT = "lsm-rows/1"
NUMBERS = (
    "log_prob",
    "student",
    "loss",
    "log_tail",
    "coverage",
    "open_mass",
    "lost_mass",
    "chunk",
)
TEXTS = ("text", "class", "reason")
SUPPORTS = ("top", "student_top")
TOKEN = frozenset({"id", "scored", *NUMBERS, *TEXTS, *SUPPORTS})
SEQUENCE = frozenset(
    {
        "name",
        "facts",
        "prompt",
        "text",
        "tokens",
        "other",
        "chunks",
        "request",
        "server",
        "needs_token",
    }
)
OTHER = frozenset({"name", "tokens"})
LOG_PROBS = frozenset({"log_prob", "student", "log_tail"})
# A log-probability is 0 at most; what was estimated of one may be a little more.
MOST = 1.0
# Whole numbers that every reader of JSON reads alike.
LARGEST = 2**53
# It is copied into programs: nothing in it ends a string of theirs.
SERVER = re.compile(r"https?://[!#-&(-\[\]-_a-~]+")
REALIGNED = ("coverage", "open_mass", "lost_mass", "chunk")


def make_document(sequences: Sequence[Mapping[str, Any]], title: str = "") -> dict[str, Any]:
    """A document of these sequences, in their order; raises as ``check_document``."""
    document: dict[str, Any] = {"format": FORMAT, "title": title, "sequences": list(sequences)}
    check_document(document)
    return document


def check_document(document: Mapping[str, Any]) -> None:
    """Raises InvalidRequestError where a document is not as docs/inspect.md has it."""
    if not isinstance(document, Mapping):
        _wrong("is no object", "document")
    if document.get("format") != FORMAT:
        _wrong(f"is {str(document.get('format'))[:40]!r}, not {FORMAT!r}", "format")
    _check_text(document.get("title"), "title")
    sequences = document.get("sequences")
    if not isinstance(sequences, list) or not sequences:
        _wrong("is no list of one sequence or more", "sequences")
    for at, sequence in enumerate(sequences):
        where = f"sequences[{at}]"
        if not isinstance(sequence, Mapping) or not isinstance(sequence.get("name"), str):
            _wrong("has no name", where)
        _check_fields(sequence, SEQUENCE, "sequence", where)
        _check_sequence(sequence, where)
        _check_tokens(sequence.get("tokens"), f"{where}.tokens")
        other = sequence.get("other")
        if other is not None:
            if not isinstance(other, Mapping) or not isinstance(other.get("name"), str):
                _wrong("has no name", f"{where}.other")
            _check_fields(other, OTHER, "other segmentation", f"{where}.other")
            _check_tokens(other.get("tokens"), f"{where}.other.tokens")


def sequence_of_reply(
    name: str,
    reply: Mapping[str, Any],
    index: int = 0,
    *,
    student: Sequence[float | None] | None = None,
) -> dict[str, Any]:
    """The sequence of one continuation of a reply of ``POST /v1/score``.

    Args:
        index: of the continuation.
        student: the student's log-probability of each row's token, where it is known.

    Raises:
        InvalidRequestError: the continuation has no rows, or ``student`` is of another length.
    """
    result = reply["results"][index]
    if result["status"] != "OK":
        _wrong(f"has no rows: {result['status']} {result['detail']}".strip(), f"results[{index}]")
    rows = result["rows"]
    if student is not None and len(student) != len(rows):
        _wrong(f"has {len(student)} log-probabilities for {len(rows)} rows", "student")
    tokens = [_token(row) for row in rows]
    if student is not None:
        for token, log_prob in zip(tokens, student, strict=True):
            token["student"] = log_prob
    found: dict[str, Any] = {"name": name, "tokens": tokens}
    if "chunk_log_likelihood" in result:
        found["chunks"] = result["chunk_log_likelihood"]
    return found


def _token(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row of a reply as a token of a document."""
    token: dict[str, Any] = {"id": row["token_id"], "text": row["token"]}
    if "sampled_log_prob" in row:
        token["log_prob"] = row["sampled_log_prob"]
    if "log_tail" in row:
        token["log_tail"] = row["log_tail"]
    if "top" in row:
        token["top"] = [[e["token_id"], e["token"], e["log_prob"]] for e in row["top"]]
    realigned = row.get("realignment")
    if realigned is not None:
        token["class"] = realigned["position_class"]
        if realigned["mask_reason"] is not None:
            token["reason"] = realigned["mask_reason"]
        token |= {key: realigned[key] for key in REALIGNED}
    return token


def _check_sequence(sequence: Mapping[str, Any], where: str) -> None:
    """All of it but its tokens and name."""
    for key in ("prompt", "text"):
        _check_text(sequence.get(key), f"{where}.{key}")
    facts = sequence.get("facts")
    if not isinstance(facts, Mapping | None):
        _wrong("is no object of numbers and texts", f"{where}.facts")
    for name, value in (facts or {}).items():
        if not isinstance(name, str):
            _wrong("has a name that is no text", f"{where}.facts")
        if not isinstance(value, str):
            _check_number(value, f"{where}.facts.{name[:40]}")
    chunks = sequence.get("chunks")
    if not isinstance(chunks, list | None):
        _wrong("is no list of numbers", f"{where}.chunks")
    for number, value in enumerate(chunks or ()):
        _check_number(value, f"{where}.chunks[{number}]")
    server = sequence.get("server")
    if server is not None and not (isinstance(server, str) and SERVER.fullmatch(server)):
        _wrong("is no http(s) URL without quotes, backslashes and white space", f"{where}.server")
    if not isinstance(sequence.get("needs_token"), bool | None):
        _wrong("is neither true nor false", f"{where}.needs_token")
    request = sequence.get("request")
    if not isinstance(request, Mapping | None):
        _wrong("is no object", f"{where}.request")
    try:
        json.dumps(request, allow_nan=False)
    except (ValueError, TypeError, RecursionError):
        _wrong("is no JSON of finite numbers", f"{where}.request")


def _check_tokens(tokens: Any, where: str) -> None:
    if not isinstance(tokens, list):
        _wrong("is no list", where)
    for at, token in enumerate(tokens):
        if not isinstance(token, Mapping) or not _is_id(token.get("id")):
            _wrong("has no id", f"{where}[{at}]")
        _check_fields(token, TOKEN, "token", f"{where}[{at}]")
        if not isinstance(token.get("scored"), bool | None):
            _wrong("is neither true nor false", f"{where}[{at}].scored")
        for key in NUMBERS:
            most = MOST if key in LOG_PROBS else LARGEST
            _check_number(token.get(key), f"{where}[{at}].{key}", most)
        for key in TEXTS:
            _check_text(token.get(key), f"{where}[{at}].{key}")
        for key in SUPPORTS:
            _check_support(token.get(key), f"{where}[{at}].{key}")


def _check_support(support: Any, where: str) -> None:
    if not isinstance(support, list | None):
        _wrong("is no list", where)
    for entry in support or ():
        if (
            not isinstance(entry, list | tuple)
            or len(entry) != 3
            or not _is_id(entry[0])
            or not isinstance(entry[1], str | None)
            or entry[2] is None
        ):
            _wrong("is no list of [id, text, log-probability]", where)
        _check_number(entry[2], where, MOST)


def _check_fields(found: Mapping[str, Any], known: frozenset[str], whose: str, where: str) -> None:
    if unknown := found.keys() - known:
        name = min(map(str, unknown))[:40]
        _wrong(f"has a field {name!r}, which no {whose} has", where)


def _check_text(value: Any, where: str) -> None:
    if not isinstance(value, str | None):
        _wrong("is no text", where)


def _is_id(value: Any) -> bool:
    return type(value) is int and abs(value) <= LARGEST


def _check_number(value: Any, where: str, most: float = LARGEST) -> None:
    """None is not known; ``most``: what it is at most."""
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, int | float):
        _wrong("is no number", where)
    if not -LARGEST <= value <= LARGEST:  # NaN is not either
        _wrong(f"is no finite number of at most {LARGEST} either way", where)
    if value > most:
        _wrong("is no log-probability: it is positive", where)


def _wrong(what: str, where: str) -> NoReturn:
    raise InvalidRequestError(
        what, where=where, fix=f"write documents of {FORMAT} as docs/inspect.md describes them"
    )
