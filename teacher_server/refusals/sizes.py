"""Checks of sizes: requests, replies, sequences, teachers' rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from teacher_proto.errors import InvalidRequestError
from teacher_proto.types import ScoreRequest, ServerLimits

from teacher_server.refusals.errors import empty_prompt, over_limit, refuse
from teacher_server.refusals.facts import TeacherFacts

# Bytes of a reply besides its rows: per continuation (shapes, tags; more, where realignment is
# asked for) and per reply (identity, request id, times).
CONTINUATION_BYTES = 256
REPLY_BYTES = 2048
REALIGNED_BYTES = 192


class RowBytes(NamedTuple):
    """Bytes of a row besides its entries, and where realignment is asked for, more per row and
    per token (its chunk's likelihood)."""

    row: int
    realigned: int
    chunk: int


ARRAYS = RowBytes(row=16, realigned=18, chunk=4)
# Times the limit of a reply: what the teacher's rows may take, of which a realigned reply
# keeps a part.
ROWS_PER_REPLY = 4
SMALLER_REPLY = "ask for fewer rows or a smaller top_k, or split the group"


def check_sizes(
    request: ScoreRequest,
    prompt_tokens: int,
    facts: TeacherFacts,
    limits: ServerLimits,
    bytes_per_entry: int,
    lengths: Sequence[int] | None = None,
) -> None:
    """Sizes that are known once the prompt's length on the teacher's side is.

    Args:
        prompt_tokens: length of the prompt the teacher reads.
        lengths: of the continuations as the teacher reads them, when its tokenizer is
            not the request's.
        bytes_per_entry: size of one (id, log-probability) in the reply.
    """
    if prompt_tokens == 0:
        raise empty_prompt(request.prompt_to_read[1])
    total = prompt_tokens
    for index, continuation in enumerate(request.continuations):
        tokens = len(continuation.token_ids) if lengths is None else lengths[index]
        total += tokens
        if prompt_tokens + tokens > facts.max_length:
            raise over_limit(
                f"{prompt_tokens} prompt tokens and {tokens} of the continuation are "
                f"{prompt_tokens + tokens} together",
                f"continuations[{index}]",
                "engine.max_length, at most what the model can read",
                facts.max_length,
                "shorten the prompt or the continuation",
            )
    check_request_tokens(total, limits)
    reply = reply_bytes(request, bytes_per_entry)
    if reply > limits.max_reply_bytes:
        raise over_limit(
            f"the reply would take {reply} bytes",
            "continuations",
            "limits.max_reply_bytes",
            limits.max_reply_bytes,
            SMALLER_REPLY,
        )
    readable = request.max_reply_bytes
    if readable is not None and reply > readable:
        raise reply_too_large(reply, readable)


def reply_bytes(request: ScoreRequest, bytes_per_entry: int, each: RowBytes = ARRAYS) -> int:
    """The most bytes that a reply takes, of arrays, or as the wire has them by ``each``; of
    text it is what tokens of usual length take."""
    size = REPLY_BYTES
    for continuation in request.continuations:
        explicit = continuation.explicit_ids
        per_row = request.top_k + (0 if explicit is None else explicit.shape[1])
        rows = continuation.row_count
        size += CONTINUATION_BYTES + rows * (per_row * bytes_per_entry + each.row)
        if request.returns.realignment:
            size += REALIGNED_BYTES + rows * each.realigned
            size += len(continuation.token_ids) * each.chunk
    return size


def reply_too_large(size: int, readable: int) -> InvalidRequestError:
    """The error for a reply of more bytes than its caller says that it reads."""
    return refuse(
        f"the reply would take {size} bytes, and the caller reads {readable}",
        "max_reply_bytes",
        f"{SMALLER_REPLY}, or let the client read more and say so",
        "REPLY_TOO_LARGE",
    )


def check_text(size: int, where: str, limits: ServerLimits) -> None:
    """Refuses ``size`` bytes of text, in UTF-8, that are more than is tokenized for one
    prompt, or for the continuations of one request."""
    if limits.max_text_bytes is not None and size > limits.max_text_bytes:
        raise text_too_long(size, where, limits)


def text_too_long(size: int, where: str, limits: ServerLimits) -> InvalidRequestError:
    """The error for text over ``limits.max_text_bytes``, which is known."""
    assert limits.max_text_bytes is not None
    return over_limit(
        f"the text is {size} bytes",
        where,
        "limits.max_text_bytes",
        limits.max_text_bytes,
        "send less text, or token ids",
    )


def check_text_fits(size: int, where: str, facts: TeacherFacts, limits: ServerLimits) -> None:
    """Refuses ``size`` bytes of text that are too many tokens however they are encoded: for
    the teacher, or for one request."""
    if facts.longest_token is None:
        return
    least = -(-size // facts.longest_token)
    what = f"{size} bytes of text are {least} tokens or more"
    if least > facts.max_length:
        raise _too_long(what, where, facts)
    if least > limits.max_request_tokens:
        raise _too_many(what, where, limits, "shorten it")


def check_prompt_tokens(tokens: int, where: str, limits: ServerLimits) -> None:
    """Refuses a prompt that alone is more tokens than a request may have."""
    if tokens > limits.max_request_tokens:
        raise _too_many(f"the text is {tokens} tokens", where, limits, "shorten it")


def check_text_tokens(tokens: int, where: str, facts: TeacherFacts) -> None:
    if tokens > facts.max_length:
        raise _too_long(f"the text is {tokens} tokens", where, facts)


def _too_long(what: str, where: str, facts: TeacherFacts) -> InvalidRequestError:
    return over_limit(
        what,
        where,
        "engine.max_length, at most what the model can read",
        facts.max_length,
        "shorten it",
    )


def check_request_tokens(tokens: int, limits: ServerLimits) -> None:
    if tokens > limits.max_request_tokens:
        what = f"prompt and continuations are {tokens} tokens"
        raise _too_many(what, "continuations", limits, "split the group")


def _too_many(what: str, where: str, limits: ServerLimits, fix: str) -> InvalidRequestError:
    return over_limit(what, where, "limits.max_request_tokens", limits.max_request_tokens, fix)


def check_row_bytes(size: int, limits: ServerLimits) -> None:
    """Refuses when the rows that a realigned reply is made of would take too much."""
    limit = ROWS_PER_REPLY * limits.max_reply_bytes
    if size > limit:
        raise over_limit(
            f"the teacher's rows would take {size} bytes",
            "continuations",
            f"{ROWS_PER_REPLY} times limits.max_reply_bytes",
            limit,
            SMALLER_REPLY,
        )


def session_memory(worker_memory_bytes: int) -> int:
    """What a request may take of the memory of a tokenizer's process; the rest is for its
    tables and its messages."""
    return worker_memory_bytes * 3 // 4


def check_session_bytes(size: int, worker_memory_bytes: int) -> None:
    """Refuses what the process of a tokenizer has no memory to realign."""
    limit = session_memory(worker_memory_bytes)
    if size > limit:
        raise over_limit(
            f"to realign its rows would take {size} bytes of memory",
            "continuations",
            "three quarters of tokenizers.worker_memory_bytes",
            limit,
            SMALLER_REPLY,
        )


def check_request_bytes(size: int, limits: ServerLimits) -> None:
    if size > limits.max_request_bytes:
        raise over_limit(
            f"the request is {size} bytes or more",
            "the request's body",
            "limits.max_request_bytes",
            limits.max_request_bytes,
            "split the group",
            "REQUEST_TOO_LARGE",
        )


def check_tokenizer_bytes(size: int, limits: ServerLimits) -> None:
    if size > limits.max_tokenizer_bytes:
        raise over_limit(
            f"the file is {size} bytes or more",
            "the request's body",
            "limits.max_tokenizer_bytes",
            limits.max_tokenizer_bytes,
            "send a smaller tokenizer.json",
            "REQUEST_TOO_LARGE",
        )
