"""Documents of rows to look at: what the page draws (docs/inspect.md).

A document holds sequences of tokens with what is known of each. It is plain JSON; a field that
is left out or null is not known.
"""

from __future__ import annotations

import math
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
REALIGNED = ("coverage", "open_mass", "lost_mass", "chunk")


def make_document(sequences: Sequence[Mapping[str, Any]], title: str = "") -> dict[str, Any]:
    """A document of these sequences, in their order; raises as ``check_document``."""
    document: dict[str, Any] = {"format": FORMAT, "title": title, "sequences": list(sequences)}
    check_document(document)
    return document


def check_document(document: Mapping[str, Any]) -> None:
    """Raises InvalidRequestError where a document is not as docs/inspect.md has it."""
    if document.get("format") != FORMAT:
        _wrong(f"is {str(document.get('format'))[:40]!r}, not {FORMAT!r}", "format")
    sequences = document.get("sequences")
    if not isinstance(sequences, list) or not sequences:
        _wrong("is no list of one sequence or more", "sequences")
    for at, sequence in enumerate(sequences):
        where = f"sequences[{at}]"
        if not isinstance(sequence, Mapping) or not isinstance(sequence.get("name"), str):
            _wrong("has no name", where)
        if unknown := sequence.keys() - SEQUENCE:
            _wrong(f"has a field {min(unknown)[:40]!r}, which no sequence has", where)
        _check_tokens(sequence.get("tokens"), f"{where}.tokens")
        other = sequence.get("other")
        if other is not None:
            if not isinstance(other, Mapping) or not isinstance(other.get("name"), str):
                _wrong("has no name", f"{where}.other")
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


def _check_tokens(tokens: Any, where: str) -> None:
    if not isinstance(tokens, list):
        _wrong("is no list", where)
    for at, token in enumerate(tokens):
        if not isinstance(token, Mapping) or type(token.get("id")) is not int:
            _wrong("has no id", f"{where}[{at}]")
        if unknown := token.keys() - TOKEN:
            _wrong(f"has a field {min(unknown)[:40]!r}, which no token has", f"{where}[{at}]")
        for key in NUMBERS:
            _check_number(token.get(key), f"{where}[{at}].{key}")
        for key in TEXTS:
            if not isinstance(token.get(key), str | None):
                _wrong("is no text", f"{where}[{at}].{key}")
        for key in SUPPORTS:
            for entry in token.get(key) or ():
                if len(entry) != 3 or type(entry[0]) is not int or entry[2] is None:
                    _wrong("is no list of [id, text, log-probability]", f"{where}[{at}].{key}")
                _check_number(entry[2], f"{where}[{at}].{key}")


def _check_number(value: Any, where: str) -> None:
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        _wrong("is no finite number", where)


def _wrong(what: str, where: str) -> NoReturn:
    raise InvalidRequestError(
        what, where=where, fix=f"write documents of {FORMAT} as docs/inspect.md describes them"
    )
