"""Checks of a request's fields against its teacher and the server's limits.

Every check returns None or raises; none changes the request. ``sizes`` has the checks
that need the prompt's length on the teacher's side.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
from teacher_proto.errors import ContractMismatchError, InvalidRequestError, UnknownTeacherError
from teacher_proto.types import (
    ChatPrompt,
    Continuation,
    Int32,
    Prompt,
    ScoreRequest,
    ServerLimits,
    SpecialTokens,
    TextPrompt,
    TokenPrompt,
)

from teacher_server.refusals.errors import (
    check_hash_version,
    empty_prompt,
    over_limit,
    realignment_unavailable,
    refuse,
    too_many_continuations,
    unknown_tokenizer,
)
from teacher_server.refusals.facts import StudentFacts, TeacherFacts

MAX_NAME_LENGTH = 256
# Below it logits / temperature leave no digit of a probability in float32, or overflow;
# above it every row is even.
MIN_TEMPERATURE, MAX_TEMPERATURE = 1e-6, 1e6


def is_name(text: str) -> bool:
    """Whether ``text`` can be a run or a request id."""
    return 0 < len(text) <= MAX_NAME_LENGTH and text.isprintable()


def check_name(text: str, where: str) -> None:
    if not text:
        raise refuse("it is empty", where, "name it: any printable text")
    if len(text) > MAX_NAME_LENGTH:
        raise refuse(
            f"it is {len(text)} characters long; at most {MAX_NAME_LENGTH} are taken",
            where,
            "send a shorter one",
        )
    if not text.isprintable():
        raise refuse("it holds control characters", where, "send printable characters only")


def unknown_teacher(name: str, known: tuple[str, ...]) -> InvalidRequestError | UnknownTeacherError:
    listed = ", ".join(known)
    if not name:
        return refuse("it is empty", "teacher", f"name one of the server's teachers: {listed}")
    shown = name if is_name(name) else "(not printable, or too long)"
    return UnknownTeacherError(
        f"there is no teacher {shown!r}",
        where="teacher",
        fix=f"name one of the server's teachers: {listed}",
    )


def check_request(
    request: ScoreRequest,
    facts: TeacherFacts,
    limits: ServerLimits,
    student: StudentFacts | None = None,
) -> None:
    """Checks everything that needs no rendered prompt.

    Args:
        student: what is known of the request's tokenizer when it is not the teacher's.

    Raises:
        InvalidRequestError: a field is wrong or over a limit.
        ContractMismatchError: tokenizer or identity do not match.
    """
    check_name(request.run, "run")
    check_name(request.request_id, "request_id")
    check_tokenizer(request.tokenizer_hash, facts, student)
    check_identity(request.expected_identity, facts)
    check_readable(request.max_reply_bytes)
    if student is not None and request.tokenizer_hash != facts.tokenizer_hash:
        check_foreign_prompt(request)
        facts = in_student_ids(facts, student, request.student_vocabulary_size)
    check_support(request, facts)
    check_prompt(request.prompt, "prompt", facts.vocabulary_size)
    if request.teacher_prompt is not None:
        check_prompt(request.teacher_prompt, "teacher_prompt", facts.vocabulary_size)
    check_continuation_count(len(request.continuations), limits)
    for index, continuation in enumerate(request.continuations):
        check_continuation(continuation, f"continuations[{index}]", facts, limits)
    asks = request.top_k > 0 or request.returns.sampled
    if not asks and all(c.explicit_ids is None for c in request.continuations):
        raise refuse(
            "nothing is asked for: top_k is 0, returns.sampled is false and no continuation "
            "has explicit_ids",
            "top_k",
            "set top_k, returns.sampled or explicit_ids",
        )


def check_foreign_prompt(request: ScoreRequest) -> None:
    """Ids of another tokenizer mean nothing to the teacher: its prompt has to be text."""
    prompt, where = request.prompt_to_read
    if isinstance(prompt, TokenPrompt):
        raise refuse(
            "the prompt is token ids, and the teacher has another tokenizer",
            f"{where}.token_ids",
            "send the conversation as chat messages, which the teacher's template renders, or text",
        )


def in_student_ids(
    facts: TeacherFacts, student: StudentFacts, student_vocabulary_size: int | None
) -> TeacherFacts:
    """The facts for a request whose ids are the student's: the ids of its tokenizer, and
    those of its logits above them, which no token has."""
    size = max(student.vocabulary_size, student_vocabulary_size or 0)
    return replace(
        facts,
        vocabulary_size=size,
        max_top_k=min(facts.max_top_k, student.vocabulary_size),
    )


def check_continuation_count(count: int, limits: ServerLimits) -> None:
    if count == 0:
        raise refuse("there is none", "continuations", "send at least one continuation")
    if count > limits.max_continuations:
        raise too_many_continuations(f"there are {count}", limits)


def exactly_one(sources: Mapping[str, object], where: str) -> None:
    """Refuses unless one of the alternatives is given (is not None)."""
    given = [name for name, value in sources.items() if value is not None]
    if len(given) != 1:
        raise refuse(
            f"{' and '.join(given) or 'none'} of {', '.join(sources)} given; exactly one is needed",
            where,
            f"give one of {', '.join(sources)}",
        )


def check_tokenizer(tokenizer_hash: str, facts: TeacherFacts, student: StudentFacts | None) -> None:
    if tokenizer_hash == facts.tokenizer_hash:
        return
    if not tokenizer_hash:
        raise refuse(
            "it is empty", "tokenizer_hash", "send the hash of the tokenizer whose ids these are"
        )
    if student is None:
        raise unknown_tokenizer(tokenizer_hash)
    if not student.realigned:
        raise realignment_unavailable(
            f"teacher {facts.name!r} has another tokenizer than the request, of a kind that "
            "cannot be realigned",
            "tokenizer_hash",
        )


def check_uploaded_hash(named: str, found: str) -> None:
    if named != found:
        check_hash_version(named, "header.tokenizer_hash")
        raise refuse(
            f"the file's hash is {found}",
            "header.tokenizer_hash",
            "compute the hash from the file that is sent",
        )


def check_identity(expected: str, facts: TeacherFacts) -> None:
    if expected and expected != facts.identity_digest:
        raise ContractMismatchError(
            f"teacher {facts.name!r} is not the one the request expects: its identity is "
            f"{facts.identity_digest}",
            where="expected_identity",
            fix="ask GetTeacher for the identity and decide whether to go on with this teacher",
            reason="IDENTITY_MISMATCH",
        )


def check_readable(reply_bytes: int | None) -> None:
    if reply_bytes is not None and reply_bytes < 1:
        raise refuse(
            f"{reply_bytes} is below 1",
            "max_reply_bytes",
            "send how many bytes of a reply the client reads, or leave it out",
        )


def check_support(request: ScoreRequest, facts: TeacherFacts) -> None:
    """top_k, temperature, returns and student_vocabulary_size."""
    top_k, temperature = request.top_k, request.temperature
    if top_k < 0:
        raise refuse(f"{top_k} is negative", "top_k", "send 0 for no support, else K >= 1")
    if top_k > facts.max_top_k:
        raise over_limit(
            f"{top_k} is too large for teacher {facts.name!r}, which has "
            f"{facts.vocabulary_size} ids",
            "top_k",
            "limits.max_top_k",
            facts.max_top_k,
            "ask for less",
        )
    if not MIN_TEMPERATURE <= temperature <= MAX_TEMPERATURE:  # so is nan refused
        raise refuse(
            f"{temperature} is not in {MIN_TEMPERATURE:g}..{MAX_TEMPERATURE:g}, where float32 "
            "tells probabilities apart",
            "temperature",
            "send 1.0, say",
        )
    if request.returns.log_tail and top_k == 0:
        raise refuse(
            "log_tail is the mass outside the support and top_k is 0",
            "returns.log_tail",
            "set top_k >= 1 or leave log_tail out",
        )
    if request.returns.coarse and not request.returns.realignment:
        raise refuse(
            "coarse rows cannot be told from others without position_class",
            "returns.coarse",
            "set returns.realignment too, or leave coarse out",
        )
    student = request.student_vocabulary_size
    if student is None:
        return
    if student < 1:
        raise refuse(
            f"{student} is below 1",
            "student_vocabulary_size",
            "send the student's number of logits, or leave it out",
        )
    if top_k > student:
        raise refuse(
            f"{top_k} is more than student_vocabulary_size={student}",
            "top_k",
            "ask for a support that the student's vocabulary can hold",
        )


def check_prompt(prompt: Prompt, where: str, vocabulary_size: int) -> None:
    if isinstance(prompt, TokenPrompt):
        if len(prompt.token_ids) == 0:
            raise empty_prompt(f"{where}.token_ids")
        check_ids(prompt.token_ids, f"{where}.token_ids", vocabulary_size)
    elif isinstance(prompt, TextPrompt):
        # With ADD, what the tokenizer begins a text with may be a prompt by itself.
        if not prompt.text and prompt.special_tokens != SpecialTokens.ADD:
            raise empty_prompt(f"{where}.text")
    elif isinstance(prompt, ChatPrompt) and not prompt.messages:
        raise refuse("there is no message", f"{where}.chat.messages", "send at least one")


def check_ids(ids: Int32, where: str, vocabulary_size: int, *, lowest: int = 0) -> None:
    """Refuses ids outside ``lowest``..``vocabulary_size`` - 1, naming the first one."""
    wrong = np.flatnonzero((ids.reshape(-1) < lowest) | (ids.reshape(-1) >= vocabulary_size))
    if len(wrong):
        first = int(wrong[0])
        raise refuse(
            f"id {int(ids.reshape(-1)[first])} at index {first} is not in "
            f"{lowest}..{vocabulary_size - 1}, the tokenizer's vocabulary",
            where,
            "send ids of the tokenizer that tokenizer_hash names",
        )


def check_continuation(
    continuation: Continuation, where: str, facts: TeacherFacts, limits: ServerLimits
) -> None:
    if not continuation.segments:
        raise refuse("there is none", f"{where}.segments", "send at least one scored segment")
    for index, segment in enumerate(continuation.segments):
        path = f"{where}.segments[{index}].token_ids"
        if len(segment.token_ids) == 0:
            raise refuse("the segment is empty", path, "leave the segment out")
        check_ids(segment.token_ids, path, facts.vocabulary_size)
    if not any(segment.scored for segment in continuation.segments):
        raise refuse("no segment is scored", f"{where}.segments", "set scored on at least one")
    if continuation.rows is not None:
        scored = sum(len(s.token_ids) for s in continuation.segments if s.scored)
        check_rows(continuation.rows, f"{where}.rows", scored)
    if continuation.explicit_ids is not None:
        rows = continuation.row_count
        check_explicit(continuation.explicit_ids, f"{where}.explicit_ids", rows, facts, limits)


def check_rows(rows: Int32, where: str, count: int) -> None:
    if rows.ndim != 1:
        raise refuse(f"its shape is {list(rows.shape)}", where, "send one dimension")
    if len(rows) == 0:
        raise refuse("no row is selected", where, "leave rows out to select all of them")
    if rows.min() < 0 or rows.max() >= count:
        raise refuse(
            f"rows {int(rows.min())}..{int(rows.max())} are not all in 0..{count - 1}: the "
            f"continuation has {count} scored tokens",
            where,
            "send indices of scored tokens",
        )
    if len(rows) > 1 and int(np.diff(rows.astype(np.int64)).min()) <= 0:
        raise refuse("the indices are not strictly increasing", where, "sort them, each once")


def check_explicit(
    ids: Int32, where: str, rows: int, facts: TeacherFacts, limits: ServerLimits
) -> None:
    if ids.ndim != 2 or ids.shape[0] != rows or ids.shape[1] == 0:
        raise refuse(
            f"its shape is {list(ids.shape)}; [{rows}, E] with E >= 1 is needed, one line for "
            "each row asked for",
            where,
            "send one line per row, filled up with -1, or leave explicit_ids out",
        )
    if ids.shape[1] > limits.max_explicit_ids:
        raise over_limit(
            f"{ids.shape[1]} ids per row are asked for",
            where,
            "limits.max_explicit_ids",
            limits.max_explicit_ids,
            "ask for fewer",
        )
    check_ids(ids, where, facts.vocabulary_size, lowest=-1)
