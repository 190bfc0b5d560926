"""Discounted sums along responses. Shape: T rows; the rows of a response are contiguous."""

from __future__ import annotations

import torch
from torch import Tensor


def discounted_returns(rewards: Tensor, responses: Tensor, steps: Tensor, gamma: float) -> Tensor:
    """R_t = sum over the response's rows t' >= t of gamma^(t' - t) r_t'.

    t is the row's step, so rows that are left out keep their distance. The sum is in
    float64 and doubles its reach with each of its log2(T) passes.

    Args:
        rewards: [T]. responses, steps: int64 [T], steps ascending in a response.
        gamma: in [0, 1].

    Returns:
        float64 [T].

    Raises:
        ValueError: gamma is outside [0, 1], or the rows are not in order.
    """
    if not 0 <= gamma <= 1:
        raise ValueError(f"gamma must lie in [0, 1], got {gamma}")
    total = rewards.double()
    if gamma == 0 or len(total) < 2:
        return total
    same = responses[1:] == responses[:-1]
    gaps = steps[1:] - steps[:-1]
    if bool((same & (gaps <= 0)).any()) or int(same.sum()) + len(torch.unique(responses)) != len(
        total
    ):
        raise ValueError("a response's rows must stand together with ascending steps")
    # weight[t] discounts the total `reach` rows later back to row t.
    weight = torch.zeros_like(total)
    weight[:-1] = torch.where(same, gamma ** gaps.clamp_min(1).double(), 0)
    reach = 1
    while reach < len(total):
        total, weight = total.clone(), weight.clone()
        ahead_total, ahead_weight = total[reach:].clone(), weight[reach:].clone()
        total[:-reach] += weight[:-reach] * ahead_total
        weight[:-reach] *= ahead_weight
        weight[-reach:] = 0
        reach *= 2
    return total
