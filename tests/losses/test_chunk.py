"""The chunk's policy gradient against the exact gradient of the chunk's divergence."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from student_trainer.losses import Head, LossBatch, LossSettings, chunk_policy

V = 3
STATES = torch.eye(1 + V, dtype=torch.float64)


def student() -> Tensor:
    """[V, H]: column 0 gives the first token's logits, column 1 + y those after y."""
    torch.manual_seed(3)
    return torch.randn(V, 1 + V, dtype=torch.float64).requires_grad_()


def chunk_log_probs(weight: Tensor) -> Tensor:
    """log pi of every chunk of two tokens, [V, V]."""
    first = weight[:, 0].log_softmax(0)
    then = weight[:, 1:].log_softmax(0).T
    return first[:, None] + then


def teacher() -> Tensor:
    """log q of every chunk: a distribution over chunks that does not factor by token."""
    torch.manual_seed(4)
    return torch.randn(V * V, dtype=torch.float64).log_softmax(0).view(V, V)


def expected_gradient(rows: tuple[int, ...], clamp: float | None = None) -> Tensor:
    """Of the loss, over every chunk by its probability; ``rows`` are those that learn."""
    weight = student()
    log_pi, log_q = chunk_log_probs(weight).detach(), teacher()
    chosen = list(rows)
    for pair in itertools.product(range(V), repeat=2):
        old = [weight[:, 0].log_softmax(0)[pair[0]], weight[:, 1 + pair[0]].log_softmax(0)[pair[1]]]
        advantage = (log_q - log_pi)[pair].expand(2)
        batch = LossBatch(
            hidden=STATES[[0, 1 + pair[0]]][chosen],
            sampled_ids=torch.tensor(pair)[chosen],
            weights=torch.ones(len(rows), dtype=torch.float64),
            old_log_probs=torch.stack(old).detach()[chosen],
        )
        result = chunk_policy(batch, advantage[chosen], Head(weight), LossSettings(gamma=1), clamp)
        assert int(result.used.sum()) == len(rows)
        (result.total * log_pi[pair].exp()).backward()
    assert weight.grad is not None
    return weight.grad


def exact_gradient() -> Tensor:
    weight = student()
    log_pi = chunk_log_probs(weight)
    (log_pi.exp() * (log_pi - teacher())).sum().backward()
    assert weight.grad is not None
    return weight.grad


def test_its_mean_is_the_gradient_of_the_chunks_divergence() -> None:
    torch.testing.assert_close(expected_gradient((0, 1)), exact_gradient(), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("row", [0, 1])
def test_any_part_of_a_chunk_gets_its_part_of_the_gradient(row: int) -> None:
    exact = exact_gradient()
    part = torch.zeros_like(exact)
    columns = slice(0, 1) if row == 0 else slice(1, None)
    part[:, columns] = exact[:, columns]
    torch.testing.assert_close(expected_gradient((row,)), part, rtol=1e-9, atol=1e-12)


def test_the_clamp_bounds_the_advantage() -> None:
    gaps = (teacher() - chunk_log_probs(student()).detach()).abs()
    bound = float(gaps.median())
    assert float(gaps.max()) > bound
    assert not torch.allclose(expected_gradient((0, 1), bound), exact_gradient(), rtol=1e-3)
    torch.testing.assert_close(
        expected_gradient((0, 1), float(gaps.max())), exact_gradient(), rtol=1e-9, atol=1e-12
    )


def test_it_needs_the_rollouts_log_probabilities() -> None:
    batch = LossBatch(STATES[:1], torch.tensor([0]), torch.ones(1))
    with pytest.raises(ValueError, match="log-probability of the sampled token"):
        chunk_policy(batch, torch.zeros(1), Head(student()), LossSettings())
