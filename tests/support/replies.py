"""Requests, and replies a contract-keeping teacher gives: log-softmax rows of
seeded logits over a small vocabulary."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from teacher_proto.rows import Rows
from teacher_proto.types import (
    Continuation,
    ContinuationScores,
    Level,
    Returns,
    ScoreReply,
    ScoreRequest,
    Segment,
    ServerInfo,
    ServerLimits,
    TeacherIdentity,
    TeacherInfo,
    Timing,
    TokenPrompt,
)

VOCABULARY = 48
IDENTITY = TeacherIdentity(
    digest="d1",
    weights_digest="w1",
    dtype="float32",
    quantization="",
    adapter_digest="",
    tokenizer_hash="t1",
)
TEACHER = TeacherInfo(
    name="default",
    identity=IDENTITY,
    vocabulary_size=VOCABULARY,
    max_top_k=VOCABULARY,
    max_length=512,
    engine="scripted",
    deterministic=True,
    tokenizers={"t1": Level.SAME},
    model="scripted",
)
SERVER = ServerInfo(
    teachers=(TEACHER,),
    limits=ServerLimits(1 << 20, 1 << 22, 64, 16, 4096, 65536, 1 << 20),
    server_version="0",
)


def ids(*values: int) -> np.ndarray[Any, np.dtype[np.int32]]:
    return np.array(values, np.int32)


def make_request(**changes: Any) -> ScoreRequest:
    """Two continuations of three and five scored tokens, K=4, sampled asked for."""
    request = ScoreRequest(
        request_id="request-1",
        run="run-1",
        teacher="default",
        tokenizer_hash="t1",
        prompt=TokenPrompt(ids(1, 2, 3)),
        continuations=(
            Continuation((Segment(ids(4, 5, 6)),)),
            Continuation(
                (Segment(ids(7, 8)), Segment(ids(9), scored=False), Segment(ids(1, 2, 3)))
            ),
        ),
        top_k=4,
        temperature=1.0,
        returns=Returns(sampled=True),
    )
    return replace(request, **changes)


def make_reply(
    request: ScoreRequest, *, seed: int = 0, identity: TeacherIdentity = IDENTITY
) -> ScoreReply:
    """What a teacher with VOCABULARY ids answers; a valid reply to ``request``."""
    random = np.random.default_rng(seed)
    results = tuple(_scores(request, item, random) for item in request.continuations)
    return ScoreReply(request.request_id, identity, results, Timing(0.0, 0.001, 0.002, 11))


def _scores(
    request: ScoreRequest, continuation: Continuation, random: np.random.Generator
) -> ContinuationScores:
    sampled = continuation.token_ids[continuation.selected_positions]
    rows = np.arange(len(sampled))
    logits = random.normal(size=(len(sampled), VOCABULARY)) * 2 / request.temperature
    exact = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    arrays: dict[str, Any] = {}
    if request.top_k:
        limit = min(request.student_vocabulary_size or VOCABULARY, VOCABULARY)
        count = min(request.top_k, limit)
        top = np.argsort(-exact[:, :limit], axis=1, kind="stable")[:, :count]
        arrays["top_ids"] = np.full((len(rows), request.top_k), -1, np.int32)
        arrays["top_log_probs"] = np.zeros((len(rows), request.top_k), np.float32)
        arrays["top_ids"][:, :count] = top
        arrays["top_log_probs"][:, :count] = np.take_along_axis(exact, top, axis=1)
        arrays["valid_counts"] = np.full(len(rows), count, np.int32)
        if request.returns.log_tail:
            tail = 1 - np.exp(np.take_along_axis(exact, top, axis=1)).sum(axis=1)
            some = np.full(len(rows), count < VOCABULARY)
            arrays["log_tail_valid"] = some
            arrays["log_tail"] = np.where(some, np.log(np.maximum(tail, 1e-30)), 0).astype(
                np.float32
            )
    if request.returns.sampled:
        arrays["sampled_log_probs"] = exact[rows, sampled].astype(np.float32)
        arrays["sampled_valid"] = np.ones(len(rows), np.bool_)
    if continuation.explicit_ids is not None:
        asked = continuation.explicit_ids >= 0
        values = np.take_along_axis(exact, np.maximum(continuation.explicit_ids, 0), axis=1)
        arrays["explicit_valid"] = asked
        arrays["explicit_log_probs"] = np.where(asked, values, 0).astype(np.float32)
    return ContinuationScores(rows=Rows.of(arrays))


def with_arrays(scores: ContinuationScores, **arrays: Any) -> ContinuationScores:
    """The scores with these arrays, by their names in v1/score.proto, in place of their own."""
    return replace(scores, rows=Rows.of({**scores.rows.arrays(), **arrays}))
