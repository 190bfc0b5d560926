"""Replies as JSON: ids, token text and log-probabilities, valid parts only."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
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

from teacher_server.refusals.errors import over_limit

# The text of an id; None for one that no token has.
TokenText = Callable[[int], str | None]


def to_json(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()


def render_reply(request: ScoreRequest, reply: ScoreReply, token_text: TokenText) -> bytes:
    """The reply in the form of ``models.ScoreReplyBody``; ``token_text``: of each id.

    It is written row by row, since other threads wait while one document is written.
    """
    texts = _Texts(token_text)
    identity = dataclasses.asdict(reply.identity)
    head = {"request_id": reply.request_id, "teacher": request.teacher, "identity": identity}
    answered = zip(request.continuations, reply.results, strict=True)
    results = [_result(continuation, scores, texts) for continuation, scores in answered]
    timing = {"timing": dataclasses.asdict(reply.timing)}
    return _joined(to_json(head), _list("results", results), to_json(timing))


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


def _result(continuation: Continuation, scores: ContinuationScores, texts: _Texts) -> bytes:
    head = {"status": scores.status.name, "detail": scores.detail} | _chunks(scores)
    rows = [to_json(row) for row in _rows(continuation, scores, texts)]
    return _joined(to_json(head), _list("rows", rows))


def _list(name: str, items: list[bytes]) -> bytes:
    return b'{"%b":[%b]}' % (name.encode(), b",".join(items))


def _joined(*objects: bytes) -> bytes:
    """One JSON object with the members of all of them, none of which is empty."""
    return b"{%b}" % b",".join(one[1:-1] for one in objects)


def render_info(info: ServerInfo) -> bytes:
    """Teachers, limits and version, with realignment levels by name."""
    document = dataclasses.asdict(info)
    for teacher in document["teachers"]:
        teacher["tokenizers"] = {key: level.name for key, level in teacher["tokenizers"].items()}
    return to_json(document)


class _Texts:
    """Token texts of one reply; the same ids come again and again."""

    def __init__(self, token_text: TokenText) -> None:
        self._text = token_text
        self._known: dict[int, str | None] = {}

    def __call__(self, token_id: int) -> str | None:
        if token_id not in self._known:
            self._known[token_id] = self._text(token_id)
        return self._known[token_id]

    def entries(self, ids: Int32, log_probs: Float32) -> list[dict[str, Any]]:
        return [
            {"token_id": token_id, "token": self(token_id), "log_prob": log_prob}
            for token_id, log_prob in zip(ids.tolist(), log_probs.tolist(), strict=True)
        ]


def _rows(
    continuation: Continuation, scores: ContinuationScores, texts: _Texts
) -> Iterator[dict[str, Any]]:
    if scores.status is not Status.OK:
        return
    sampled = continuation.token_ids[continuation.selected_positions].tolist()
    indices = range(len(sampled)) if continuation.rows is None else continuation.rows.tolist()
    for slot, (index, token) in enumerate(zip(indices, sampled, strict=True)):
        parts = _row_parts(scores, slot, continuation.explicit_ids, texts)
        yield {"row": index, "token_id": token, "token": texts(token)} | parts


def _chunks(scores: ContinuationScores) -> dict[str, Any]:
    block = scores.realignment
    return {} if block is None else {"chunk_log_likelihood": block.chunk_log_likelihood.tolist()}


def _row_parts(
    scores: ContinuationScores, slot: int, explicit_ids: Int32 | None, texts: _Texts
) -> dict[str, Any]:
    parts: dict[str, Any] = {}
    rows = scores.rows
    for name, part in (("sampled_log_prob", rows.sampled), ("log_tail", rows.log_tail)):
        if part is not None and part.valid[slot]:
            parts[name] = float(part.values[slot])
    if rows.support is not None:
        count = int(rows.support.counts[slot])
        parts["top"] = texts.entries(
            rows.support.ids[slot, :count], rows.support.log_probs[slot, :count]
        )
    if rows.explicit is not None:
        given = rows.explicit.valid[slot]
        asked = required(explicit_ids, "explicit_ids")
        parts["explicit"] = texts.entries(asked[slot][given], rows.explicit.values[slot][given])
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


def _reason(block: Realignment, slot: int) -> str | None:
    """The reason's name; None for a row that is neither masked nor coarse."""
    if block.mask_reason is None or not block.mask_reason[slot]:
        return None
    return MaskReason(int(block.mask_reason[slot])).name
