"""Quantities that need the student's normaliser over the vocabulary, in blocks of
[rows, V]. Shapes: T rows, H hidden size, V vocabulary, K size of the support.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from student_trainer.losses.parts.base import Head


def logits_blocks(
    hidden: Tensor, head: Head, chunk_rows: int
) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """Yields (rows, projection, logits), the latter two float32 [rows, V], without gradient.

    ``projection`` is hidden W^T + bias with the adapter, before scale and softcap. Ids that
    are never drawn have ``NEVER`` in ``logits``.
    """
    with torch.no_grad():
        for start in range(0, hidden.shape[0], chunk_rows):
            rows = slice(start, min(start + chunk_rows, hidden.shape[0]))
            projection = hidden[rows].to(head.weight.dtype) @ head.weight.T
            if head.bias is not None:
                projection = projection + head.bias
            wide = projection.to(torch.promote_types(projection.dtype, torch.float32))
            if head.lora is not None:
                wide = wide + (head.lora.reduce(hidden[rows]) @ head.lora.up.T).to(wide.dtype)
            yield rows, wide, head.finish_rows(wide)


def token_log_probs(
    hidden: Tensor, head: Head, ids: Tensor, temperature: float, chunk_rows: int
) -> Tensor:
    """log softmax(logits / temperature) at one id per row.

    Args:
        hidden: [T, H].
        ids: int64 [T].

    Returns:
        float32 [T], differentiable in hidden and the head's tensors. Backward computes
        each block again.
    """
    result: Tensor = _TokenLogProbs.apply(  # type: ignore[no-untyped-call]
        hidden, *head.tensors, ids, head, temperature, chunk_rows
    )
    return result


class _TokenLogProbs(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        down: Tensor | None,
        up: Tensor | None,
        ids: Tensor,
        head: Head,
        temperature: float,
        chunk_rows: int,
    ) -> Tensor:
        dtype = torch.promote_types(weight.dtype, torch.float32)
        out = torch.empty(ids.shape[0], dtype=dtype, device=hidden.device)
        normaliser = torch.empty_like(out)
        for rows, _, logits in logits_blocks(hidden, head, chunk_rows):
            scaled = logits / temperature
            normaliser[rows] = torch.logsumexp(scaled, -1)
            out[rows] = scaled.gather(1, ids[rows, None]).squeeze(1) - normaliser[rows]
        ctx.save_for_backward(hidden, ids, normaliser)
        ctx.head, ctx.temperature, ctx.chunk_rows = head, temperature, chunk_rows
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        hidden, ids, normaliser = ctx.saved_tensors

        def delta(rows: slice, logits: Tensor) -> Tensor:
            # d log p_y / d logits = (onehot_y - p) / temperature
            out: Tensor = -torch.exp(logits / ctx.temperature - normaliser[rows, None])
            out.scatter_add_(1, ids[rows, None], torch.ones_like(out[:, :1]))
            upstream: Tensor = grad[rows] / ctx.temperature
            return out * upstream[:, None]

        gradients = add_logit_gradient(
            hidden, ctx.head, ctx.chunk_rows, delta, ctx.needs_input_grad
        )
        return (*gradients, None, None, None, None)


def add_logit_gradient(
    hidden: Tensor,
    head: Head,
    chunk_rows: int,
    delta: Callable[[slice, Tensor], Tensor],
    needs: Sequence[bool],
) -> tuple[Tensor | None, ...]:
    """Backpropagates a gradient at the logits to hidden and ``head.tensors``.

    Args:
        delta: maps (rows, logits [rows, V]) to the gradient at those logits.
        needs: which of hidden, weight, bias, down, up need a gradient.

    Returns:
        Their gradients in that order; None for the weight when its gradient was added to
        ``weight.grad`` in place (``Head.accumulate_in_place``).
    """
    weight, bias, down, up = head.tensors
    in_place = head.accumulate_in_place and weight.grad is not None
    # The weight's gradient is summed in the weight's dtype; the others are small and are
    # summed in float32.
    into = [
        None if tensor is None or not need else torch.zeros_like(tensor, dtype=_wide(tensor))
        for tensor, need in zip((hidden, None, bias, down, up), needs[:5], strict=True)
    ]
    if needs[1]:
        into[1] = weight.grad if in_place else torch.zeros_like(weight)
    grad_hidden, grad_weight, grad_bias, grad_down, grad_up = into
    for rows, _, logits in logits_blocks(hidden, head, chunk_rows):
        at_logits = delta(rows, logits)
        if head.softcap is not None:
            at_logits = at_logits * (1 - (logits / head.softcap) ** 2)
        wide = at_logits * head.scale
        at_projection = wide.to(weight.dtype)
        if grad_hidden is not None:
            grad_hidden[rows] += (at_projection @ weight).to(grad_hidden.dtype)
        if grad_weight is not None:
            grad_weight.addmm_(at_projection.T, hidden[rows].to(weight.dtype))
        if grad_bias is not None:
            grad_bias += wide.sum(0).to(grad_bias.dtype)
        if head.lora is not None:
            reduced = head.lora.reduce(hidden[rows])
            at_up = wide.to(head.lora.up.dtype)
            at_reduced = at_up @ head.lora.up * head.lora.scale
            if grad_up is not None:
                grad_up += at_up.T @ reduced
            if grad_down is not None:
                grad_down += at_reduced.T @ hidden[rows].to(at_reduced.dtype)
            if grad_hidden is not None:
                grad_hidden[rows] += (at_reduced @ head.lora.down).to(grad_hidden.dtype)
    into[1] = None if in_place else grad_weight
    return tuple(
        None if gradient is None or tensor is None else gradient.to(tensor.dtype)
        for gradient, tensor in zip(into, (hidden, weight, bias, down, up), strict=True)
    )


def _wide(tensor: Tensor) -> torch.dtype:
    return torch.promote_types(tensor.dtype, torch.float32)


def top_ids(hidden: Tensor, head: Head, count: int, chunk_rows: int, limit: int) -> Tensor:
    """The student's most likely ids, from its raw logits, without gradient.

    Args:
        hidden: [T, H].
        count: K, at most ``limit``.
        limit: only ids below it count; another vocabulary may lack the others.

    Returns:
        int64 [T, K], descending by logit.

    Raises:
        ValueError: there are fewer than K ids.
    """
    width = min(limit, head.weight.shape[0])
    there = width if head.undrawn is None else width - int((head.undrawn < width).sum())
    if count > there:
        raise ValueError(f"the top {count} of {there} ids do not exist")
    found = [
        logits[:, :width].topk(count, -1).indices
        for _, _, logits in logits_blocks(hidden, head, chunk_rows)
    ]
    empty = torch.zeros(0, count, dtype=torch.int64, device=hidden.device)
    return torch.cat(found) if found else empty


@dataclass(frozen=True)
class RowStatistics:
    """Statistics of the student's whole distribution, float32 [T].

    Attributes:
        entropy, sampled_log_probs: nats.
        support_mass: probability of the support.
        support_overlap: share of the support's n valid ids that are among the student's
            own n most likely ones.
    """

    entropy: Tensor
    sampled_log_probs: Tensor
    support_mass: Tensor | None
    support_overlap: Tensor | None


def row_statistics(
    hidden: Tensor,
    head: Head,
    sampled_ids: Tensor,
    temperature: float,
    chunk_rows: int,
    support_ids: Tensor | None = None,
    support_valid: Tensor | None = None,
) -> RowStatistics:
    """Statistics of the student's rows, without gradient.

    Args:
        hidden: [T, H].
        sampled_ids: int64 [T].
        support_ids, support_valid: int64 and bool [T, K]; both or neither.
    """
    entropy, sampled, mass, overlap = [], [], [], []
    for rows, _, logits in logits_blocks(hidden, head, chunk_rows):
        log_probs = torch.log_softmax(logits / temperature, -1)
        entropy.append(-(log_probs.exp() * log_probs).sum(-1))
        sampled.append(log_probs.gather(1, sampled_ids[rows, None]).squeeze(1))
        if support_ids is not None and support_valid is not None:
            valid = support_valid[rows]
            at_support = log_probs.gather(1, support_ids[rows].clamp_min(0))
            mass.append(at_support.exp().where(valid, 0).sum(-1))
            overlap.append(_overlap(log_probs, at_support, valid))
    empty = torch.zeros(0, device=hidden.device)
    return RowStatistics(
        entropy=torch.cat(entropy) if entropy else empty,
        sampled_log_probs=torch.cat(sampled) if sampled else empty,
        support_mass=(torch.cat(mass) if mass else empty) if support_ids is not None else None,
        support_overlap=(torch.cat(overlap) if overlap else empty)
        if support_ids is not None
        else None,
    )


def _overlap(log_probs: Tensor, at_support: Tensor, valid: Tensor) -> Tensor:
    """[T]: share of the n valid support ids that are at or above the n-th best of all ids."""
    counts = valid.sum(-1, keepdim=True)
    best = log_probs.topk(valid.shape[1], -1).values
    last = best.gather(1, (counts - 1).clamp_min(0))
    inside = ((at_support >= last) & valid).sum(-1, keepdim=True)
    return (inside / counts.clamp_min(1)).squeeze(1)
