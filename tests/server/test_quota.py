"""Quotas: never more than a minute's worth beyond the rate, and hints that are true."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from teacher_proto.errors import InvalidRequestError, OverloadedError

from teacher_server.queue.policy import RunPolicy
from teacher_server.queue.quota import MINUTE, SPARE, Quotas

QUOTA = 600  # tokens a minute: 10 a second


@settings(max_examples=300, deadline=None)
@given(
    requests=st.lists(
        st.tuples(st.sampled_from("ab"), st.integers(1, QUOTA), st.integers(0, 40)), max_size=60
    )
)
def test_no_window_holds_more_than_the_quota_and_every_hint_is_true(
    requests: list[tuple[str, int, int]],
) -> None:
    quotas = Quotas()
    now = 0.0
    taken: dict[str, list[tuple[float, int]]] = {"a": [], "b": []}

    def ask(policy: RunPolicy, tokens: int) -> float | None:
        try:
            quotas.check(policy, tokens, now)
        except OverloadedError as error:
            return error.retry_after
        quotas.take(policy, tokens, now)
        taken[policy.run].append((now, tokens))
        return None

    for run, tokens, pause in requests:
        now += pause
        policy = RunPolicy(run, tokens_per_minute=QUOTA)
        hint = ask(policy, tokens)
        if hint is not None:
            assert 0 < hint <= MINUTE
            now += hint * 0.99
            assert ask(policy, tokens) is not None, "the hint was too long"
            now += hint * 0.01 + 1e-6
            assert ask(policy, tokens) is None, "the hint was too short"
    for events in taken.values():
        for first, (begin, _) in enumerate(events):
            for last in range(first, len(events)):
                end = events[last][0]
                total = sum(tokens for _, tokens in events[first : last + 1])
                assert total <= QUOTA * (1 + (end - begin) / MINUTE) + 1e-3


def test_a_request_above_a_minute_s_worth_is_refused_for_good() -> None:
    policy = RunPolicy("run", tokens_per_minute=QUOTA)
    with pytest.raises(InvalidRequestError, match="tokens_per_minute=600"):
        Quotas().check(policy, QUOTA + 1, 0.0)
    Quotas().check(RunPolicy("run"), 10**9, 0.0)


def test_a_quota_that_changes_holds_at_once() -> None:
    quotas = Quotas()
    quotas.take(RunPolicy("run", tokens_per_minute=QUOTA), QUOTA, 0.0)
    with pytest.raises(OverloadedError) as found:
        quotas.check(RunPolicy("run", tokens_per_minute=QUOTA * 10), QUOTA, 0.0)
    assert found.value.reason == "QUOTA_EXCEEDED"
    quotas.check(RunPolicy("run", tokens_per_minute=QUOTA * 10), QUOTA, 7.0)


def test_full_buckets_are_forgotten() -> None:
    quotas = Quotas()
    for number in range(10 * SPARE):
        quotas.take(RunPolicy(f"run-{number}", tokens_per_minute=QUOTA), 1, float(number))
    assert len(quotas._buckets) <= 2 * SPARE
