"""Every refusal, and every limit one below, at and one above."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from teacher_proto.errors import ContractMismatchError, InvalidRequestError, LsmError
from teacher_proto.types import (
    ChatPrompt,
    Continuation,
    Returns,
    ScoreRequest,
    Segment,
    ServerLimits,
    TextPrompt,
    TokenPrompt,
)

from teacher_server.refusals.facts import StudentFacts, TeacherFacts
from teacher_server.refusals.sizes import (
    ARRAYS,
    CONTINUATION_BYTES,
    REPLY_BYTES,
    ROWS_PER_REPLY,
    check_request_bytes,
    check_row_bytes,
    check_session_bytes,
    check_sizes,
)
from teacher_server.refusals.validation import check_request
from tests.server.running import continuation, ids

FACTS = TeacherFacts(
    name="default",
    vocabulary_size=100,
    max_top_k=20,
    max_length=12,
    tokenizer_hash="own",
    identity_digest="digest",
)
LIMITS = ServerLimits(
    max_request_bytes=1000,
    max_reply_bytes=10_000,
    max_continuations=3,
    max_explicit_ids=4,
    max_request_tokens=20,
    max_queue_tokens=100,
    max_tokenizer_bytes=1000,
)
VALID = ScoreRequest(
    request_id="id",
    run="run",
    teacher="default",
    tokenizer_hash="own",
    prompt=TokenPrompt(ids(1, 2)),
    continuations=(continuation(3, 4),),
    top_k=5,
    temperature=1.0,
)


def check(request: ScoreRequest, prompt_tokens: int = 2) -> None:
    check_request(request, FACTS, LIMITS)
    check_sizes(request, prompt_tokens, FACTS, LIMITS, bytes_per_entry=8)


def one(**changes: Any) -> ScoreRequest:
    return replace(VALID, continuations=(replace(continuation(3, 4), **changes),))


def segments(*parts: Segment) -> ScoreRequest:
    return replace(VALID, continuations=(Continuation(parts),))


def test_the_valid_request_passes() -> None:
    check(VALID)


REFUSED: list[tuple[str, ScoreRequest, str]] = [
    ("no run", replace(VALID, run=""), "run"),
    ("run too long", replace(VALID, run="x" * 257), "run"),
    ("control character", replace(VALID, request_id="a\nb"), "request_id"),
    ("no request id", replace(VALID, request_id=""), "request_id"),
    ("no tokenizer", replace(VALID, tokenizer_hash=""), "tokenizer_hash"),
    ("empty prompt", replace(VALID, prompt=TokenPrompt(ids())), "prompt.token_ids"),
    ("empty text", replace(VALID, prompt=TextPrompt("")), "prompt.text"),
    ("no messages", replace(VALID, prompt=ChatPrompt(())), "prompt.chat.messages"),
    ("prompt id", replace(VALID, prompt=TokenPrompt(ids(1, 100))), "prompt.token_ids"),
    (
        "teacher prompt id",
        replace(VALID, teacher_prompt=TokenPrompt(ids(-1))),
        "teacher_prompt.token_ids",
    ),
    ("no continuation", replace(VALID, continuations=()), "continuations"),
    ("no segment", segments(), "continuations[0].segments"),
    ("empty segment", segments(Segment(ids())), "continuations[0].segments[0].token_ids"),
    (
        "nothing scored",
        segments(Segment(ids(1), scored=False)),
        "continuations[0].segments",
    ),
    (
        "negative id",
        segments(Segment(ids(1)), Segment(ids(-1))),
        "continuations[0].segments[1].token_ids",
    ),
    ("no row", one(rows=ids()), "continuations[0].rows"),
    ("row beyond", one(rows=ids(0, 2)), "continuations[0].rows"),
    ("row negative", one(rows=ids(-1)), "continuations[0].rows"),
    ("rows repeated", one(rows=ids(1, 1)), "continuations[0].rows"),
    ("rows falling", one(rows=ids(1, 0)), "continuations[0].rows"),
    ("rows of two dimensions", one(rows=np.zeros((1, 1), np.int32)), "continuations[0].rows"),
    (
        "explicit ids of another count",
        one(explicit_ids=np.zeros((3, 1), np.int32)),
        "continuations[0].explicit_ids",
    ),
    (
        "explicit ids against selected rows",
        one(rows=ids(1), explicit_ids=np.zeros((2, 1), np.int32)),
        "continuations[0].explicit_ids",
    ),
    (
        "explicit ids without a column",
        one(explicit_ids=np.zeros((2, 0), np.int32)),
        "continuations[0].explicit_ids",
    ),
    (
        "explicit id below -1",
        one(explicit_ids=np.full((2, 1), -2, np.int32)),
        "continuations[0].explicit_ids",
    ),
    (
        "explicit id beyond",
        one(explicit_ids=np.full((2, 1), 100, np.int32)),
        "continuations[0].explicit_ids",
    ),
    ("K negative", replace(VALID, top_k=-1), "top_k"),
    ("nothing asked", replace(VALID, top_k=0, returns=Returns(sampled=False)), "top_k"),
    (
        "tail of nothing",
        replace(VALID, top_k=0, returns=Returns(log_tail=True)),
        "returns.log_tail",
    ),
    ("coarse rows unseen", replace(VALID, returns=Returns(coarse=True)), "returns.coarse"),
    *[
        (f"temperature {value}", replace(VALID, temperature=value), "temperature")
        for value in (0.0, -1.0, float("nan"), float("inf"), 1e-300, 9.9e-7, 1.1e6, 1e300)
    ],
    ("student vocabulary", replace(VALID, student_vocabulary_size=0), "student_vocabulary_size"),
    ("K beyond the student", replace(VALID, student_vocabulary_size=4), "top_k"),
]


@pytest.mark.parametrize(
    ("request_", "where"), [r[1:] for r in REFUSED], ids=[r[0] for r in REFUSED]
)
def test_a_wrong_field_is_named(request_: ScoreRequest, where: str) -> None:
    with pytest.raises(InvalidRequestError) as found:
        check(request_)
    assert found.value.where == where
    assert found.value.fix


def _rows_of(tokens: int) -> Continuation:
    return continuation(*[1] * tokens)


REPLY_LIMIT = LIMITS.max_reply_bytes


def _reply_of(excess: int) -> tuple[ServerLimits, ScoreRequest]:
    """A request whose reply is estimated at max_reply_bytes + excess."""
    size = REPLY_BYTES + CONTINUATION_BYTES + 2 * (5 * 8 + ARRAYS.row)
    return replace(LIMITS, max_reply_bytes=size - excess), VALID


LIMITED: list[tuple[str, Callable[[int], tuple[ServerLimits, ScoreRequest]]]] = [
    (
        "limits.max_continuations",
        lambda d: (LIMITS, replace(VALID, continuations=(_rows_of(1),) * (3 + d))),
    ),
    (
        "limits.max_explicit_ids",
        lambda d: (LIMITS, one(explicit_ids=np.zeros((2, 4 + d), np.int32))),
    ),
    ("limits.max_top_k", lambda d: (LIMITS, replace(VALID, top_k=20 + d))),
    ("engine.max_length", lambda d: (LIMITS, replace(VALID, continuations=(_rows_of(10 + d),)))),
    (
        "limits.max_request_tokens",
        lambda d: (LIMITS, replace(VALID, continuations=(_rows_of(9), _rows_of(9 + d)))),
    ),
    ("limits.max_reply_bytes", _reply_of),
]


@pytest.mark.parametrize("excess", [-1, 0, 1])
@pytest.mark.parametrize(("setting", "build"), LIMITED, ids=[name for name, _ in LIMITED])
def test_limits_hold_exactly_and_name_their_setting(
    setting: str, build: Callable[[int], tuple[ServerLimits, ScoreRequest]], excess: int
) -> None:
    limits, request = build(excess)

    def run() -> None:
        check_request(request, FACTS, limits)
        check_sizes(request, 2, FACTS, limits, bytes_per_entry=8)

    if excess <= 0:
        run()
        return
    with pytest.raises(InvalidRequestError) as found:
        run()
    assert found.value.reason == "LIMIT_EXCEEDED"
    assert setting in found.value.what
    assert setting in found.value.fix


@pytest.mark.parametrize("excess", [-1, 0, 1])
def test_the_body_limit_holds_exactly(excess: int) -> None:
    if excess <= 0:
        check_request_bytes(1000 + excess, LIMITS)
        return
    with pytest.raises(InvalidRequestError, match=r"limits\.max_request_bytes") as found:
        check_request_bytes(1001, LIMITS)
    assert found.value.reason == "REQUEST_TOO_LARGE"


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"tokenizer_hash": "never seen"}, "UNKNOWN_TOKENIZER"),
        ({"expected_identity": "another"}, "IDENTITY_MISMATCH"),
    ],
)
def test_what_does_not_match_is_a_failed_precondition(changes: dict[str, str], reason: str) -> None:
    with pytest.raises(ContractMismatchError) as found:
        check(replace(VALID, **changes))
    assert found.value.reason == reason


@pytest.mark.parametrize(
    "request_",
    [
        replace(VALID, expected_identity="digest"),
        replace(VALID, top_k=0),
        replace(
            VALID,
            top_k=0,
            returns=Returns(sampled=False),
            continuations=(continuation(3, 4, explicit_ids=np.full((2, 1), -1, np.int32)),),
        ),
        replace(VALID, temperature=1e-6),
        replace(VALID, temperature=1e6),
        replace(VALID, student_vocabulary_size=5),
        replace(VALID, student_vocabulary_size=1000),
        replace(VALID, run="x" * 256),
        one(rows=ids(0)),
        segments(Segment(ids(99)), Segment(ids(0), scored=False)),
    ],
)
def test_what_the_contract_allows_passes(request_: ScoreRequest) -> None:
    check(request_)


FOREIGN = replace(
    VALID,
    tokenizer_hash="foreign",
    prompt=TextPrompt("text"),
    continuations=(continuation(149),),
)


def check_foreign(request: ScoreRequest, *, realigned: bool = True) -> None:
    check_request(request, FACTS, LIMITS, StudentFacts(150, realigned))


def test_a_registered_tokenizer_s_request_is_checked_in_its_own_ids() -> None:
    check_foreign(FOREIGN)
    check_foreign(replace(FOREIGN, teacher_prompt=TextPrompt("x"), prompt=TokenPrompt(ids(149))))
    # Ids that the student's logits have and no token: told of the continuation, not refused.
    padded = replace(FOREIGN, student_vocabulary_size=152, continuations=(continuation(151),))
    check_foreign(padded)
    with pytest.raises(ContractMismatchError) as found:
        check_foreign(FOREIGN, realigned=False)
    assert found.value.reason == "REALIGNMENT_UNAVAILABLE"


@pytest.mark.parametrize(
    ("changes", "where"),
    [
        ({"continuations": (continuation(150),)}, "continuations[0].segments[0].token_ids"),
        ({"continuations": (continuation(-1),)}, "continuations[0].segments[0].token_ids"),
        ({"prompt": TokenPrompt(ids(1))}, "prompt.token_ids"),
        ({"teacher_prompt": TokenPrompt(ids(1))}, "teacher_prompt.token_ids"),
        (
            {"continuations": (continuation(1, explicit_ids=np.array([[150]], np.int32)),)},
            "continuations[0].explicit_ids",
        ),
        ({"top_k": 21}, "top_k"),
    ],
)
def test_what_a_foreign_request_cannot_say(changes: dict[str, Any], where: str) -> None:
    with pytest.raises(InvalidRequestError) as found:
        check_foreign(replace(FOREIGN, **changes))
    assert found.value.where == where
    assert found.value.fix


def test_rows_that_take_too_much_are_refused() -> None:
    check_row_bytes(ROWS_PER_REPLY * 10_000, LIMITS)
    with pytest.raises(InvalidRequestError, match=r"limits\.max_reply_bytes") as found:
        check_row_bytes(ROWS_PER_REPLY * 10_000 + 1, LIMITS)
    assert found.value.reason == "LIMIT_EXCEEDED"


def test_what_a_tokenizer_s_process_has_no_memory_for_is_refused() -> None:
    check_session_bytes(300, 400)
    with pytest.raises(InvalidRequestError, match=r"tokenizers\.worker_memory_bytes") as found:
        check_session_bytes(301, 400)
    assert found.value.reason == "LIMIT_EXCEEDED"


def test_a_prompt_that_renders_to_nothing_is_refused() -> None:
    with pytest.raises(LsmError, match="empty"):
        check(VALID, prompt_tokens=0)
