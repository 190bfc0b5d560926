"""ScoreReply <-> message.

Decoding checks form (presence, dtypes, dimensions, lengths, known enumerators);
``reply_check`` checks the content against the request.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from teacher_proto.codec.arrays import BITMAP, FLOAT32, INT32, UINT8, decode_array, encode_array
from teacher_proto.codec.structs import check_text
from teacher_proto.codec.teacher import decode_identity, encode_identity
from teacher_proto.codec.wire import parse
from teacher_proto.errors import EngineError, LsmError, PoisonedReplyError
from teacher_proto.rows import Rows
from teacher_proto.types import (
    ContinuationScores,
    PositionClass,
    Realignment,
    ScoreReply,
    Status,
    Timing,
)
from teacher_proto.v1 import score_pb2

# Element type and dimensions of a row's arrays, by their names in the message and in ``Rows``.
ARRAYS = {
    "top_ids": (INT32, 2),
    "top_log_probs": (FLOAT32, 2),
    "valid_counts": (INT32, 1),
    "sampled_log_probs": (FLOAT32, 1),
    "sampled_valid": (BITMAP, 1),
    "log_tail": (FLOAT32, 1),
    "log_tail_valid": (BITMAP, 1),
    "explicit_log_probs": (FLOAT32, 2),
    "explicit_valid": (BITMAP, 2),
}
REALIGNMENT_PARTS = (
    ("coverage", FLOAT32),
    ("open_mass", FLOAT32),
    ("lost_mass", FLOAT32),
    ("position_class", UINT8),
    ("chunk_index", INT32),
    ("chunk_log_likelihood", FLOAT32),
    ("mask_reason", UINT8),
)
# Those that an older server does not send.
LATER_PARTS = frozenset(["mask_reason"])
TIMES = ("queue_seconds", "engine_seconds", "total_seconds")


def encode_reply(reply: ScoreReply) -> score_pb2.ScoreResponse:
    """Raises EngineError naming the part whose dtype or rank the contract forbids."""
    message = score_pb2.ScoreResponse(
        request_id=reply.request_id,
        identity=encode_identity(reply.identity),
        timing=score_pb2.ScoreTiming(
            queue_seconds=reply.timing.queue_seconds,
            engine_seconds=reply.timing.engine_seconds,
            total_seconds=reply.timing.total_seconds,
            computed_tokens=reply.timing.computed_tokens,
        ),
    )
    for index, scores in enumerate(reply.results):
        _encode_scores(scores, message.results.add(), f"results[{index}]")
    return message


def decode_reply(message: score_pb2.ScoreResponse | bytes) -> ScoreReply:
    """Raises PoisonedReplyError naming the field, such as ``results[3].top_ids``."""
    if isinstance(message, bytes):
        message = parse(message, score_pb2.ScoreResponse(), PoisonedReplyError)
    if not message.HasField("identity"):
        raise PoisonedReplyError("is missing", where="identity")
    if not message.HasField("timing"):
        raise PoisonedReplyError("is missing", where="timing")
    return ScoreReply(
        request_id=message.request_id,
        identity=decode_identity(message.identity),
        results=tuple(
            _decode_scores(result, f"results[{index}]")
            for index, result in enumerate(message.results)
        ),
        timing=_decode_timing(message.timing),
    )


def _encode_scores(
    scores: ContinuationScores, message: score_pb2.ContinuationResult, where: str
) -> None:
    message.status = score_pb2.ContinuationStatus.ValueType(scores.status)
    message.detail = check_text(scores.detail, f"{where}.detail", EngineError)
    for name, values in scores.rows.arrays().items():
        kind, dimensions = ARRAYS[name]
        encode_array(
            values, getattr(message, name), kind, dimensions, f"{where}.{name}", EngineError
        )
    if scores.realignment is not None:
        block = message.realignment
        for name, kind in REALIGNMENT_PARTS:
            values = getattr(scores.realignment, name)
            if values is None and name in LATER_PARTS:
                continue
            inner = f"{where}.realignment.{name}"
            encode_array(values, getattr(block, name), kind, 1, inner, EngineError)


def _decode_scores(message: score_pb2.ContinuationResult, where: str) -> ContinuationScores:
    try:
        status = Status(message.status)
    except ValueError:
        raise PoisonedReplyError(
            f"is {message.status}, which means nothing", where=f"{where}.status"
        ) from None
    rows, block = _decode_rows(message, where), None
    if message.HasField("realignment"):
        block = _decode_realignment(message.realignment, f"{where}.realignment")
    return ContinuationScores(status, message.detail, rows, block)


def _decode_rows(message: score_pb2.ContinuationResult, where: str) -> Rows:
    fields: Any = message
    arrays = {
        name: decode_array(
            getattr(fields, name), kind, dimensions, f"{where}.{name}", PoisonedReplyError
        )
        for name, (kind, dimensions) in ARRAYS.items()
        if fields.HasField(name)
    }
    try:
        return Rows.of(arrays)
    except KeyError as missing:
        raise PoisonedReplyError(
            "is missing though the rest of its part is there", where=f"{where}.{missing.args[0]}"
        ) from None


def _decode_realignment(message: score_pb2.Realignment, where: str) -> Realignment:
    error: type[LsmError] = PoisonedReplyError
    fields: Any = message
    parts: dict[str, Any] = {}
    for name, kind in REALIGNMENT_PARTS:
        if not fields.HasField(name):
            if name in LATER_PARTS:
                continue
            raise error("is missing", where=f"{where}.{name}")
        parts[name] = decode_array(getattr(fields, name), kind, 1, f"{where}.{name}", error)
    known = np.array([int(item) for item in PositionClass], np.uint8)
    if not np.isin(parts["position_class"], known).all():
        raise error("holds a class that means nothing", where=f"{where}.position_class")
    return Realignment(**parts)


def _decode_timing(message: score_pb2.ScoreTiming) -> Timing:
    for name in TIMES:
        value = getattr(message, name)
        if not math.isfinite(value) or value < 0:
            raise PoisonedReplyError(f"is {value!r} seconds", where=f"timing.{name}")
    if message.computed_tokens < 0:
        raise PoisonedReplyError(
            f"is {message.computed_tokens} tokens", where="timing.computed_tokens"
        )
    return Timing(
        message.queue_seconds,
        message.engine_seconds,
        message.total_seconds,
        message.computed_tokens,
    )
