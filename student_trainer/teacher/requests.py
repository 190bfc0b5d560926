"""Sizes, ids and joins of the requests that a trainer sends. Pure functions."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
from teacher_proto.rows import Rows
from teacher_proto.types import (
    ContinuationScores,
    Prompt,
    ScoreRequest,
    ServerLimits,
    TeacherInfo,
    TokenPrompt,
)

ENTRY_BYTES = 8  # an id and a log-probability
ROW_BYTES = 48  # a row without its support but with its realignment, generously
LARGEST_K = "its largest K"  # a limit's name, which errors tell
MESSAGE_BYTES = 4096  # a message without its rows, generously


def split_group(
    prompt: int, responses: Sequence[int], top_k: int, limits: ServerLimits, explicit: int = 0
) -> list[slice]:
    """Cuts a group into requests that are within the server's limits, each as large as
    possible, in order.

    Args:
        prompt: tokens of the prompt.
        responses: tokens of each response.
        explicit: ids scored for each row besides the top K.
    """
    pieces, start, tokens, reply = [], 0, prompt, MESSAGE_BYTES
    for index, length in enumerate(responses):
        size = length * row_bytes(top_k, explicit)
        full = (
            index - start >= limits.max_continuations
            or tokens + length > limits.max_request_tokens
            or reply + size > limits.max_reply_bytes
            or request_bytes(tokens + length, explicit) > limits.max_request_bytes
        )
        if full and index > start:
            pieces.append(slice(start, index))
            start, tokens, reply = index, prompt, MESSAGE_BYTES
        tokens += length
        reply += size
    return [*pieces, slice(start, len(responses))]


def request_digest(request: ScoreRequest) -> str:
    """sha256 over everything that a request asks for, 32 hexadecimal digits."""
    digest = hashlib.sha256()
    head: tuple[object, ...] = (
        request.run,
        request.teacher,
        request.tokenizer_hash,
        request.expected_identity,
        request.top_k,
        request.temperature,
        request.student_vocabulary_size,
        request.returns,
    )
    arrays = []
    if isinstance(request.prompt, TokenPrompt):
        arrays.append(request.prompt.token_ids)
    else:
        head = (*head, request.prompt)
    if isinstance(request.teacher_prompt, TokenPrompt):
        head = (*head, "teacher_prompt")
        arrays.append(request.teacher_prompt.token_ids)
    elif request.teacher_prompt is not None:
        head = (*head, "teacher_prompt", request.teacher_prompt)
    digest.update(repr(head).encode())
    for continuation in request.continuations:
        arrays.append(continuation.token_ids)
        arrays.append(np.zeros(0, np.int32) if continuation.rows is None else continuation.rows)
        explicit = continuation.explicit_ids
        arrays.append(np.zeros(0, np.int32) if explicit is None else explicit.reshape(-1))
    for array in arrays:
        digest.update(len(array).to_bytes(8, "little"))
        digest.update(array.astype("<i4").tobytes())
    return digest.hexdigest()[:32]


def prompts_digest(prompts: Sequence[Prompt]) -> str:
    """sha256 over what requests hold of prompts, hexadecimal."""
    digest = hashlib.sha256()
    for prompt in prompts:
        if isinstance(prompt, TokenPrompt):
            digest.update(len(prompt.token_ids).to_bytes(8, "little"))
            digest.update(prompt.token_ids.astype("<i4").tobytes())
        else:
            digest.update(repr(prompt).encode())
    return digest.hexdigest()


def row_bytes(top_k: int, explicit: int = 0) -> int:
    """The most bytes that a row of a reply takes."""
    return (top_k + explicit) * ENTRY_BYTES + ROW_BYTES


def reply_bytes(rows: int, top_k: int, explicit: int = 0) -> int:
    """The most bytes that a reply takes."""
    return rows * row_bytes(top_k, explicit) + MESSAGE_BYTES


def request_bytes(tokens: int, explicit: int) -> int:
    """The most bytes that a request takes whose tokens are all scored."""
    return tokens * 4 * (1 + explicit) + MESSAGE_BYTES


def limits_needed(
    info: TeacherInfo,
    limits: ServerLimits,
    top_k: int,
    explicit: int,
    longest_prompt: int,
    longest_response: int,
) -> list[tuple[str, int, int, str]]:
    """What a run's largest request needs of the teacher, as (setting, needed, limit, name of
    the limit)."""
    longest = longest_prompt + longest_response
    reply = reply_bytes(longest_response, top_k, explicit)
    request = request_bytes(longest, explicit)
    prompt, response = "data.max_prompt_tokens", "rollout.max_new_tokens"
    return [
        ("loss.top_k", top_k, info.max_top_k, LARGEST_K),
        (prompt, longest, info.max_length, "its longest sequence"),
        (prompt, longest, limits.max_request_tokens, "its tokens per request"),
        (response, reply, limits.max_reply_bytes, "its bytes per reply"),
        ("loss.top_k", explicit, limits.max_explicit_ids, "its explicit ids per row"),
        (response, request, limits.max_request_bytes, "its bytes per request"),
    ]


def concatenate(parts: Sequence[ContinuationScores]) -> ContinuationScores:
    """The rows of the parts, one part after another. When a part is not OK, the first such
    part is returned as it is.

    Realignment is only kept of a single part, because chunks reach across the cuts.
    """
    if len(parts) == 1:
        return parts[0]
    failed = [part for part in parts if part.rows.support is None or part.rows.sampled is None]
    if failed:
        return failed[0]
    return ContinuationScores(rows=Rows.concatenate([part.rows for part in parts]))
