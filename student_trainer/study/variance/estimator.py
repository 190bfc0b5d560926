"""The gradient of one-token signals, and its variance over micro-batches.

With rewards r_t and R_t = sum over t' >= t of gamma^(t' - t) r_t', the gradient of a batch is the
mean over its walks of

    sum over t of R_t grad log pi(move_t)

For r = log pi - log q, gamma 0 is the token-level signal and gamma 1 that of the whole sequence,
whose expectation is the gradient of KL(pi || q) over walks. The returns are those of the loss
``sampled_token``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from student_trainer.losses.parts.returns import discounted_returns
from student_trainer.study.variance.policy import Policies, log_density
from student_trainer.study.variance.walk import Walks


@dataclass(frozen=True)
class Gradients:
    """Attributes:
    parameters: of the batch, in the order of ``Policies.parameters``.
    output_layer: [R, M, 122], of the output layer's weights and biases, for each micro-batch.
    """

    parameters: tuple[Tensor, ...]
    output_layer: Tensor

    @property
    def variance(self) -> Tensor:
        """float64 [R]: (1 / M) sum over m of |g_m - mean|^2 on the output layer."""
        parts = self.output_layer.double()
        return ((parts - parts.mean(1, keepdim=True)) ** 2).sum(-1).mean(-1)


def returns(rewards: Tensor, gammas: Sequence[float]) -> Tensor:
    """R_t of each walk, [R, B, T] in the rewards' dtype.

    Args:
        rewards: [R, B, T].
        gammas: of each policy.
    """
    count, horizon = rewards.shape[1:]
    responses = torch.arange(count).repeat_interleave(horizon)
    steps = torch.arange(horizon).repeat(count)
    totals = [
        discounted_returns(own.flatten(), responses, steps, gamma).view_as(own)
        for own, gamma in zip(rewards, gammas, strict=True)
    ]
    return torch.stack(totals).to(rewards.dtype)


@dataclass(frozen=True)
class Forward:
    """What policies give for the moves of walks, with gradients.

    Attributes:
        hidden: [R, B * T, 60], the input of the output layer. outputs: [R, B * T, 2].
        log_probs: [R, B, T], of the moves, nats.
    """

    hidden: Tensor
    outputs: Tensor
    log_probs: Tensor


def forward(policies: Policies, walks: Walks) -> Forward:
    """The policies, which are ``learning``, read the walks."""
    hidden = policies.hidden(walks.features)
    outputs = policies.outputs(hidden)
    mean, sigma = policies.gaussian(outputs)
    shape = walks.moves.shape
    return Forward(hidden, outputs, log_density(walks.moves, mean.view(shape), sigma.view(shape)))


def gradients(policies: Policies, read: Forward, factors: Tensor, micro_batches: int) -> Gradients:
    """The gradient of the mean over walks of the sum over t of factor_t log pi(move_t).

    Args:
        read: by the same policies.
        factors: [R, B, T], constants: the returns.
        micro_batches: M, a divisor of B. Each part holds neighbouring walks.
    """
    total = (factors * read.log_probs).sum() / factors.shape[1]
    *parameters, at_outputs = torch.autograd.grad(total, [*policies.parameters, read.outputs])
    shape = (len(factors), micro_batches, -1)
    into = read.hidden.detach().reshape(*shape, read.hidden.shape[-1])
    back = at_outputs.reshape(*shape, at_outputs.shape[-1])
    # The parts' gradients are means over their own walks, of which there are B / M.
    weight = torch.einsum("rmnh,rmno->rmho", into, back) * micro_batches
    bias = back.sum(2, keepdim=True) * micro_batches
    return Gradients(tuple(parameters), torch.cat([weight, bias], 2).flatten(2))
