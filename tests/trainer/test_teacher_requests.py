"""Groups cut to a server's limits, and the ids of requests."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from teacher_proto.errors import ConfigurationError
from teacher_proto.rows import Rows, Support, Values
from teacher_proto.types import (
    ChatMessage,
    ChatPrompt,
    Continuation,
    ContinuationScores,
    Returns,
    ScoreRequest,
    Segment,
    ServerLimits,
    Status,
    TokenPrompt,
)

from student_trainer.teacher.link import TeacherLink
from student_trainer.teacher.requests import (
    concatenate,
    reply_bytes,
    request_bytes,
    request_digest,
    split_group,
)

LIMITS = ServerLimits(
    max_request_bytes=1 << 20,
    max_reply_bytes=reply_bytes(60, 4),
    max_continuations=3,
    max_explicit_ids=8,
    max_request_tokens=100,
    max_queue_tokens=1000,
    max_tokenizer_bytes=1,
)


@given(st.integers(1, 60), st.lists(st.integers(1, 40), min_size=1, max_size=12))
def test_every_request_is_within_the_limits(prompt: int, responses: list[int]) -> None:
    pieces = split_group(prompt, responses, 4, LIMITS)
    assert [length for piece in pieces for length in responses[piece]] == responses
    for piece in pieces:
        lengths = responses[piece]
        assert 1 <= len(lengths) <= 3
        assert prompt + sum(lengths) <= 100
        assert reply_bytes(sum(lengths), 4) <= LIMITS.max_reply_bytes


def test_a_group_that_fits_is_one_request() -> None:
    assert split_group(10, [20, 20, 20], 4, LIMITS) == [slice(0, 3)]
    assert split_group(10, [20, 20, 21], 4, LIMITS) == [slice(0, 2), slice(2, 3)]
    assert split_group(70, [20, 20], 4, LIMITS) == [slice(0, 1), slice(1, 2)]


@given(st.lists(st.integers(1, 40), min_size=1, max_size=12), st.integers(1, 8))
def test_ids_of_the_callers_choosing_count_in_both_directions(
    responses: list[int], explicit: int
) -> None:
    limits = replace(LIMITS, max_request_bytes=request_bytes(60, 8), max_continuations=99)
    for piece in split_group(10, responses, 0, limits, explicit):
        total = sum(responses[piece])
        assert (
            reply_bytes(total, 0, explicit) <= limits.max_reply_bytes or len(responses[piece]) == 1
        )
        assert request_bytes(10 + total, explicit) <= limits.max_request_bytes


def request(**changes: Any) -> ScoreRequest:
    base = ScoreRequest(
        request_id="",
        run="r",
        teacher="t",
        tokenizer_hash="h",
        prompt=TokenPrompt(np.array([1, 2], np.int32)),
        continuations=(Continuation((Segment(np.array([3], np.int32)),)),),
        top_k=4,
        temperature=1.0,
    )
    return replace(base, **changes)


def test_the_same_work_has_the_same_id_and_other_work_another() -> None:
    one = np.array([3], np.int32)
    others = [
        request(run="s"),
        request(top_k=5),
        request(temperature=0.5),
        request(expected_identity="x"),
        request(prompt=TokenPrompt(np.array([1], np.int32))),
        request(continuations=(Continuation((Segment(np.array([4], np.int32)),)),)),
        request(continuations=(Continuation((Segment(one),)),) * 2),
        request(continuations=(Continuation((Segment(one),), rows=np.array([0], np.int32)),)),
        request(
            continuations=(
                Continuation((Segment(one),), explicit_ids=np.array([[5, 6]], np.int32)),
            )
        ),
        request(returns=Returns(sampled=True, log_tail=True)),
        # The border between prompt and continuation counts.
        request(
            prompt=TokenPrompt(np.array([1], np.int32)),
            continuations=(Continuation((Segment(np.array([2, 3], np.int32)),)),),
        ),
    ]
    # A template may print the order of keys and whether a number is whole.
    for tools in ({"a": 1, "b": 2}, {"b": 2, "a": 1}, {"a": 1.0, "b": 2}, {"a": True, "b": 2}):
        prompt = ChatPrompt((ChatMessage("user", "x"),), template_arguments={"tools": [tools]})
        others.append(request(prompt=prompt))
    assert request_digest(request()) == request_digest(request())
    assert len({request_digest(other) for other in [request(), *others]}) == len(others) + 1


@pytest.mark.parametrize(
    ("needs", "key"),
    [
        ({"top_k": 65}, "loss.top_k"),
        ({"longest_prompt": 71}, "data.max_prompt_tokens"),
        ({"longest_response": 61, "longest_prompt": 5}, "rollout.max_new_tokens"),
        ({"explicit": 9}, "loss.top_k"),
        ({"explicit": 8, "small_request": True}, "rollout.max_new_tokens"),
    ],
)
def test_what_the_server_would_refuse_is_refused_before(needs: dict[str, int], key: str) -> None:
    limits = replace(LIMITS, max_reply_bytes=reply_bytes(60, 64))
    more = dict(needs)
    if more.pop("small_request", False):
        limits = replace(limits, max_request_bytes=request_bytes(99, 8))
    info = SimpleNamespace(max_top_k=64, max_length=300)
    link: Any = SimpleNamespace(info=info, limits=limits, key="teacher", called="the teacher")
    fits = {"top_k": 64, "longest_prompt": 70, "longest_response": 30}
    TeacherLink.check_fits(link, **fits)
    more = {**fits, **more}
    with pytest.raises(ConfigurationError) as caught:
        TeacherLink.check_fits(link, **more)
    assert caught.value.where == key


def test_parts_are_joined_and_a_failed_part_stays_failed() -> None:
    def part(start: int, rows: int) -> ContinuationScores:
        values = np.arange(start, start + rows)
        return ContinuationScores(
            rows=Rows(
                support=Support(
                    np.stack([values, values], 1).astype(np.int32),
                    -np.ones((rows, 2), np.float32),
                    np.full(rows, 2, np.int32),
                ),
                sampled=Values(-values.astype(np.float32), np.ones(rows, np.bool_)),
            )
        )

    joined = concatenate([part(0, 2), part(2, 3)])
    assert joined.rows.support is not None
    assert joined.rows.support.ids[:, 0].tolist() == [0, 1, 2, 3, 4]
    failed = ContinuationScores(status=Status.NON_FINITE)
    assert concatenate([part(0, 2), failed]) is failed
