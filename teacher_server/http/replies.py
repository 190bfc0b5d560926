"""Replies as JSON: ids, token text and log-probabilities, valid parts only."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from typing import Any

from teacher_proto.rows import required
from teacher_proto.types import (
    Continuation,
    ContinuationScores,
    Float32,
    Int32,
    PositionClass,
    ScoreReply,
    ScoreRequest,
    ServerInfo,
    Status,
)

from teacher_server.teachers.tokenizer import TextTokenizer


def to_json(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()


def render_reply(request: ScoreRequest, reply: ScoreReply, tokenizer: TextTokenizer) -> bytes:
    """The reply in the form of ``models.ScoreReplyBody``.

    It is written row by row, since other threads wait while one document is written.
    """
    texts = _Texts(tokenizer)
    identity = dataclasses.asdict(reply.identity)
    head = {"request_id": reply.request_id, "teacher": request.teacher, "identity": identity}
    answered = zip(request.continuations, reply.results, strict=True)
    results = [_result(continuation, scores, texts) for continuation, scores in answered]
    timing = {"timing": dataclasses.asdict(reply.timing)}
    return _joined(to_json(head), _list("results", results), to_json(timing))


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

    def __init__(self, tokenizer: TextTokenizer) -> None:
        self._tokenizer = tokenizer
        self._known: dict[int, str | None] = {}

    def __call__(self, token_id: int) -> str | None:
        if token_id not in self._known:
            self._known[token_id] = self._tokenizer.token_text(token_id)
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
            "coverage": float(block.coverage[slot]),
            "open_mass": float(block.open_mass[slot]),
            "lost_mass": float(block.lost_mass[slot]),
            "chunk": int(block.chunk_index[slot]),
        }
    return parts
