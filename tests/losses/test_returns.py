"""Discounted returns, and the sampled-token loss on them, against plain loops."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from student_trainer.losses import LossSettings, sampled_token
from student_trainer.losses.parts.returns import discounted_returns
from tests.support.loss_reference import problem, sampled_token_rows


def by_loop(rewards: list[float], owners: list[int], steps: list[int], gamma: float) -> list[float]:
    return [
        sum(
            gamma ** (steps[u] - steps[t]) * rewards[u]
            for u in range(len(rewards))
            if owners[u] == owners[t] and steps[u] >= steps[t]
        )
        for t in range(len(rewards))
    ]


@given(
    st.lists(st.lists(st.integers(1, 3), min_size=1, max_size=9), min_size=1, max_size=4),
    st.sampled_from([0.0, 0.25, 0.9, 1.0]),
    st.integers(0, 2**20),
)
@settings(max_examples=60, deadline=None)
def test_returns_equal_the_sum(gaps: list[list[int]], gamma: float, seed: int) -> None:
    steps = [s for response in gaps for s in torch.tensor(response).cumsum(0).tolist()]
    owners = [i for i, response in enumerate(gaps) for _ in response]
    rewards = torch.randn(
        len(steps), generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    )
    got = discounted_returns(rewards, torch.tensor(owners), torch.tensor(steps), gamma)
    expected = by_loop(rewards.tolist(), owners, steps, gamma)
    torch.testing.assert_close(got, torch.tensor(expected, dtype=torch.float64))


@pytest.mark.parametrize(
    ("owners", "steps"), [([0, 0, 0], [0, 2, 1]), ([0, 0], [1, 1]), ([0, 1, 0], [0, 0, 1])]
)
def test_rows_out_of_order_are_refused(owners: list[int], steps: list[int]) -> None:
    with pytest.raises(ValueError, match="stand together"):
        discounted_returns(torch.ones(len(steps)), torch.tensor(owners), torch.tensor(steps), 0.5)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0])
def test_sampled_token_takes_the_return_as_its_advantage(gamma: float) -> None:
    case = problem()
    owners, steps = torch.tensor([0] * 6 + [1] * 7), torch.tensor([*range(6), *range(1, 8)])
    batch = replace(case.batch, responses=owners, steps=steps)
    result = sampled_token(batch, case.head, LossSettings(temperature=0.7, gamma=gamma))
    token = batch.teacher_sampled - batch.old_log_probs
    total = by_loop((-token).tolist(), owners.tolist(), steps.tolist(), gamma)
    # The reference's advantage is teacher - old: give it the teacher that has -R.
    shifted = replace(
        batch, teacher_sampled=batch.old_log_probs - torch.tensor(total, dtype=torch.float64)
    )
    rows = sampled_token_rows(shifted, case.head, 0.7, 0.2, 3.0)
    torch.testing.assert_close(result.per_row, rows.detach(), rtol=1e-9, atol=1e-11)
    expected = torch.autograd.grad((rows * batch.weights).sum(), case.leaves)
    for a, e in zip(torch.autograd.grad(result.total, case.leaves), expected, strict=True):
        torch.testing.assert_close(a, e, rtol=1e-9, atol=1e-11)


def test_a_row_that_is_not_finite_adds_nothing_to_the_returns_before_it() -> None:
    case = problem()
    owners, steps = torch.zeros(13, dtype=torch.int64), torch.arange(13)
    sampled = case.batch.teacher_sampled.clone()
    sampled[5] = torch.nan
    chosen = LossSettings(gamma=1.0)
    bad = replace(case.batch, responses=owners, steps=steps, teacher_sampled=sampled)
    without = [t for t in range(13) if t != 5]
    parts = {k: v[without] for k, v in vars(bad).items() if v is not None}
    result = sampled_token(bad, case.head, chosen)
    assert result.dropped_non_finite == 1
    expected = sampled_token(replace(bad, **parts), case.head, chosen)
    torch.testing.assert_close(result.per_row[without], expected.per_row)


def test_gamma_needs_responses() -> None:
    case = problem()
    with pytest.raises(ValueError, match="which response"):
        sampled_token(case.batch, case.head, LossSettings(gamma=0.5))
