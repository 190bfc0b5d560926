"""When a call is sent again, and after how long."""

from __future__ import annotations

import itertools
import random

from hypothesis import given
from hypothesis import strategies as st
from teacher_proto.client.retry import RetryPolicy
from teacher_proto.errors import EngineError, InvalidRequestError, TeacherUnavailableError

GONE = TeacherUnavailableError("gone")


@given(st.integers(1, 10_000), st.floats(0, 100), st.integers())
def test_delays_lie_between_what_was_asked_and_the_longest(
    attempts: int, asked: float, seed: int
) -> None:
    policy = RetryPolicy()
    source = random.Random(seed)
    assert 0 <= policy.delay(GONE, attempts, source) <= policy.longest_delay
    waiting = policy.delay(EngineError("x", retry_after=asked), attempts, source)
    assert asked <= waiting <= asked + policy.longest_delay


def test_delays_grow_and_differ() -> None:
    policy = RetryPolicy(first_delay=0.1, longest_delay=10.0)
    source = random.Random(0)
    highest = [max(policy.delay(GONE, n, source) for _ in range(200)) for n in range(1, 6)]
    for before, after in itertools.pairwise(highest):
        assert 1.5 < after / before < 2.5
    assert len({policy.delay(GONE, 3, source) for _ in range(50)}) == 50


def test_only_what_may_pass_is_tried_again() -> None:
    assert RetryPolicy().allows(GONE, 1_000_000)
    assert RetryPolicy().allows(EngineError("x", retry_after=0.0), 1)
    assert not RetryPolicy().allows(EngineError("x"), 1)
    assert not RetryPolicy().allows(InvalidRequestError("x"), 1)
    assert RetryPolicy(max_attempts=2).allows(GONE, 1)
    assert not RetryPolicy(max_attempts=2).allows(GONE, 2)
