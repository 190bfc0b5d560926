"""Kept responses as a document that the page of a teacher's rows draws (docs/inspect.md)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from teacher_proto.page import make_document


def rows_document(records: Sequence[Mapping[str, Any]], title: str) -> dict[str, Any]:
    """A sequence for each record, in their order.

    Args:
        records: at least one, as ``files.load`` reads them.

    Raises:
        InvalidRequestError: a record is not as docs/watching.md has it.
    """
    return make_document([_sequence(record) for record in records], title)


def _sequence(record: Mapping[str, Any]) -> dict[str, Any]:
    loss = record["loss"]
    facts = {
        "mean loss": "none" if loss is None else loss,
        "ended": "yes" if record["finished"] else "cut at the limit",
        "worst tokens": " ".join(repr(record["texts"][place]) for place in record["worst"]),
    }
    if record["refused"]:
        facts["refused"] = record["refused"]
    return {
        "name": f"response {record['place']}"
        + ("" if loss is None else f", loss {loss:.3f}")
        + ("" if record["origin"] == "student" else ", an answer of the data"),
        "facts": facts,
        "prompt": record["prompt"],
        "text": record["text"],
        "tokens": [_token(record, place) for place in range(len(record["ids"]))],
    }


def _token(record: Mapping[str, Any], place: int) -> dict[str, Any]:
    token: dict[str, Any] = {
        "id": record["ids"][place],
        "text": record["texts"][place],
        "log_prob": record["teacher_log_probs"][place],
        "student": record["student_log_probs"][place],
        "loss": record["losses"][place],
    }
    if record["top_ids"]:
        parts = (record[name][place] for name in ("top_ids", "top_texts", "top_log_probs"))
        token["top"] = [list(entry) for entry in zip(*parts, strict=True)]
        rest = 1 - sum(math.exp(entry[2]) for entry in token["top"])
        # Log-probabilities are rounded: less than that is nothing.
        token["log_tail"] = math.log(rest) if rest > 1e-4 else None
    if "classes" in record:
        token["class"] = record["classes"][place]
        token["reason"] = record["reasons"][place] or None
        token["chunk"] = record["chunks"][place]
        token["coverage"] = record["coverage"][place]
    return token
