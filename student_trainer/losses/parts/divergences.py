"""Divergences of two distributions over O outcomes per row, student p and teacher q.

Each takes log p and log q, float [T, O], with -inf allowed only in invalid slots, and
``valid``, bool [T, O]. Each returns [T] in nats, differentiable in log p. Invalid slots
are replaced before any product, so that they affect neither values nor gradients.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

Divergence = Callable[[Tensor, Tensor, Tensor], Tensor]


def reverse_kl(log_p: Tensor, log_q: Tensor, valid: Tensor) -> Tensor:
    """sum p (log p - log q)."""
    p = torch.where(valid, log_p, 0).exp().where(valid, 0)
    return (p * torch.where(valid, log_p - log_q, 0)).sum(-1)


def forward_kl(log_p: Tensor, log_q: Tensor, valid: Tensor) -> Tensor:
    """sum q (log q - log p)."""
    q = torch.where(valid, log_q, 0).exp().where(valid, 0)
    return (q * torch.where(valid, log_q - log_p, 0)).sum(-1)


def generalised_kl(log_p: Tensor, log_q: Tensor, valid: Tensor) -> Tensor:
    """sum p (log p - log q) - p + q, for p and q that need not sum to 1. Each term is at least
    0, and 0 at p = q alone."""
    p = torch.where(valid, log_p, 0).exp().where(valid, 0)
    q = torch.where(valid, log_q, 0).exp().where(valid, 0)
    return (p * torch.where(valid, log_p - log_q, 0) - p + q).sum(-1)


def jsd(beta: float) -> Divergence:
    """beta KL(q || m) + (1 - beta) KL(p || m) with m = beta q + (1 - beta) p.

    Raises:
        ValueError: beta is not strictly between 0 and 1.
    """
    if not 0 < beta < 1:
        raise ValueError(f"beta must lie strictly between 0 and 1, got {beta}")

    def divergence(log_p: Tensor, log_q: Tensor, valid: Tensor) -> Tensor:
        safe_p, safe_q = torch.where(valid, log_p, 0), torch.where(valid, log_q, 0)
        log_m = torch.logaddexp(safe_q + math.log(beta), safe_p + math.log1p(-beta))
        return beta * forward_kl(log_m, safe_q, valid) + (1 - beta) * reverse_kl(
            safe_p, log_m, valid
        )

    return divergence


def renormalise(log_weights: Tensor, valid: Tensor) -> Tensor:
    """log of the weights divided by their sum over the valid slots. In invalid slots it is
    finite, and so low that its exponential is 0.

    Every row needs a valid slot.
    """
    lowest = torch.finfo(log_weights.dtype).min / 2
    return torch.log_softmax(log_weights.masked_fill(~valid, lowest), -1)
