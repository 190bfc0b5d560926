"""Replies as JSON: ids, token text and log-probabilities, valid parts only."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic_core import to_json as write_numbers
from teacher_proto.rows import required
from teacher_proto.types import (
    Continuation,
    ContinuationScores,
    Float32,
    Int32,
    MaskReason,
    PositionClass,
    Realignment,
    ScoreReply,
    ScoreRequest,
    ServerInfo,
    ServerLimits,
    Status,
)

from teacher_server.http.models.bodies import SLICE
from teacher_server.refusals.errors import over_limit

# The text of an id; None for one that no token has.
TokenText = Callable[[int], str | None]


def to_json(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()


def numbers_json(values: NDArray[Any]) -> bytes:
    """An array of n numbers, by slices between which other threads have their turn; raises
    ValueError for one that is not finite."""
    if not np.isfinite(values).all():
        raise ValueError("JSON has no number for what is not finite")
    begins = range(0, len(values), SLICE)
    parts = (write_numbers(values[begin : begin + SLICE].tolist()) for begin in begins)
    return b"[%b]" % b",".join(part[1:-1] for part in parts)


def render_reply(request: ScoreRequest, reply: ScoreReply, token_text: TokenText) -> bytearray:
    """The reply in the form of ``models.ScoreReplyBody``; ``token_text``: of each id.

    It is written row by row into one piece of memory: other threads wait while one document is
    written, or a large one is copied.
    """
    texts = _Texts(token_text)
    identity = dataclasses.asdict(reply.identity)
    head = {"request_id": reply.request_id, "teacher": request.teacher, "identity": identity}
    written = bytearray(to_json(head)[:-1] + b',"results":[')
    answered = zip(request.continuations, reply.results, strict=True)
    for index, (continuation, scores) in enumerate(answered):
        written += b"," if index else b""
        for part in _result(continuation, scores, texts):
            written += part
    written += b'],"timing":%b}' % to_json(dataclasses.asdict(reply.timing))
    return written


def shown_ids(request: ScoreRequest, reply: ScoreReply) -> Int32:
    """int32 [n], ascending: the ids whose texts a reply shows."""
    return np.unique(_all_shown(request, reply))


def check_text_bytes(
    request: ScoreRequest, reply: ScoreReply, texts: Mapping[int, str | None], limits: ServerLimits
) -> None:
    """Raises InvalidRequestError where the tokens' texts alone make the reply too large."""
    ids, times = np.unique(_all_shown(request, reply), return_counts=True)
    size = sum(
        count * len(to_json(texts.get(token)))
        for token, count in zip(ids.tolist(), times.tolist(), strict=True)
    )
    if size > limits.max_reply_bytes:
        raise over_limit(
            f"the texts of the reply's tokens are {size} bytes",
            "top_k",
            "limits.max_reply_bytes",
            limits.max_reply_bytes,
            "send fewer continuations or a smaller top_k",
        )


def _all_shown(request: ScoreRequest, reply: ScoreReply) -> Int32:
    """int32 [n]: each id whose text a reply shows, as often as it does."""
    found = [np.zeros(0, np.int32)]
    for continuation, scores in zip(request.continuations, reply.results, strict=True):
        if scores.status is not Status.OK:
            continue
        found.append(continuation.token_ids[continuation.selected_positions])
        support, explicit = scores.rows.support, scores.rows.explicit
        if support is not None:
            valid = np.arange(support.ids.shape[1]) < support.counts[:, None]
            found.append(support.ids[valid])
        if explicit is not None:
            asked = required(continuation.explicit_ids, "explicit_ids")
            found.append(asked[explicit.valid])
    return np.concatenate(found).astype(np.int32)


def _result(
    continuation: Continuation, scores: ContinuationScores, texts: _Texts
) -> Iterator[bytes]:
    yield to_json({"status": scores.status.name, "detail": scores.detail})[:-1]
    if scores.realignment is not None:
        chunks = numbers_json(scores.realignment.chunk_log_likelihood)
        yield b',"chunk_log_likelihood":%b' % chunks
    yield b',"rows":['
    if scores.status is Status.OK:
        yield from _rows(continuation, scores, texts)
    yield b"]}"


def render_info(info: ServerInfo) -> bytes:
    """Teachers, limits and version, with realignment levels by name."""
    document = dataclasses.asdict(info)
    for teacher in document["teachers"]:
        teacher["tokenizers"] = {key: level.name for key, level in teacher["tokenizers"].items()}
    return to_json(document)


class _Texts:
    """Token texts of one reply; the same ids come again and again."""

    def __init__(self, token_text: TokenText) -> None:
        self._entries = _Entries(token_text)
        self.text = cache(token_text)

    def entries(self, ids: Int32, log_probs: Float32) -> bytes:
        """An array with an object for each of n ids. A reply may hold a million of them, and
        other threads wait meanwhile: nothing here is done for each in Python."""
        if not len(ids):
            return b"[]"
        numbers = numbers_json(log_probs)[1:-1].split(b",")
        parts = [b""] * (2 * len(ids))
        parts[::2] = map(self._entries.__getitem__, ids.tolist())
        parts[1::2] = numbers
        return b"[%b}]" % b"".join(parts).removeprefix(_Entries.BETWEEN)


class _Entries(dict[int, bytes]):
    """What stands before an id's log-probability, from the end of the entry before it."""

    BETWEEN = b"},"

    def __init__(self, token_text: TokenText) -> None:
        super().__init__()
        self._text = token_text

    def __missing__(self, token_id: int) -> bytes:
        entry = to_json({"token_id": token_id, "token": self._text(token_id)})
        self[token_id] = found = b'%b%b,"log_prob":' % (self.BETWEEN, entry[:-1])
        return found


def _rows(continuation: Continuation, scores: ContinuationScores, texts: _Texts) -> Iterator[bytes]:
    sampled = continuation.token_ids[continuation.selected_positions].tolist()
    indices = range(len(sampled)) if continuation.rows is None else continuation.rows.tolist()
    for slot, (index, token) in enumerate(zip(indices, sampled, strict=True)):
        head = {"row": index, "token_id": token, "token": texts.text(token)}
        written = to_json(head | _row_values(scores, slot))
        yield (b",%b" if slot else b"%b") % written[:-1]
        yield from _row_lists(scores, slot, continuation.explicit_ids, texts)
        yield b"}"


def _row_values(scores: ContinuationScores, slot: int) -> dict[str, Any]:
    parts: dict[str, Any] = {}
    rows = scores.rows
    for name, part in (("sampled_log_prob", rows.sampled), ("log_tail", rows.log_tail)):
        if part is not None and part.valid[slot]:
            parts[name] = float(part.values[slot])
    if scores.realignment is not None:
        block = scores.realignment
        parts["realignment"] = {
            "position_class": PositionClass(int(block.position_class[slot])).name,
            "mask_reason": _reason(block, slot),
            "coverage": float(block.coverage[slot]),
            "open_mass": float(block.open_mass[slot]),
            "lost_mass": float(block.lost_mass[slot]),
            "chunk": int(block.chunk_index[slot]),
        }
    return parts


def _row_lists(
    scores: ContinuationScores, slot: int, explicit_ids: Int32 | None, texts: _Texts
) -> Iterator[bytes]:
    rows = scores.rows
    if rows.support is not None:
        count = int(rows.support.counts[slot])
        ids, log_probs = rows.support.ids[slot, :count], rows.support.log_probs[slot, :count]
        yield b',"top":%b' % texts.entries(ids, log_probs)
    if rows.explicit is not None:
        given = rows.explicit.valid[slot]
        asked = required(explicit_ids, "explicit_ids")
        found = texts.entries(asked[slot][given], rows.explicit.values[slot][given])
        yield b',"explicit":%b' % found


def _reason(block: Realignment, slot: int) -> str | None:
    """The reason's name; None for a row that is neither masked nor coarse."""
    if block.mask_reason is None or not block.mask_reason[slot]:
        return None
    return MaskReason(int(block.mask_reason[slot])).name
