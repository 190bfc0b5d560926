"""The rest, which is everything outside a support: a divergence with it, and the student's mass
of it, in blocks of [rows, V].

The student's mass is summed over the ids outside, never taken as 1 minus the mass inside,
which would lose all precision to cancellation.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from student_trainer.losses.parts.base import Head
from student_trainer.losses.parts.divergences import Divergence, renormalise
from student_trainer.losses.parts.normaliser import add_logit_gradient, logits_blocks


def divergence_with_rest(
    scaled: Tensor,
    log_q: Tensor,
    valid: Tensor,
    own_rest: Tensor,
    teacher_rest: tuple[Tensor, Tensor],
    divergence: Divergence,
) -> Tensor:
    """The divergence over the support and the rest of each side, [T]. Where a
    side has no rest, both are renormalised on the support.

    Args:
        scaled, log_q, valid: [T, K], student logits / temperature, teacher, valid slots.
        own_rest: [T], of ``log_rest``.
        teacher_rest: float and bool [T], the teacher's log-probability of the rest, and whether
            there is one.
    """
    tail, known = teacher_rest
    has_rest = known & own_rest.detach().isfinite()
    rest_q = tail.to(scaled.dtype).where(has_rest, 0)
    every = torch.cat([valid, has_rest[:, None]], -1)
    weights = torch.cat([scaled, torch.where(has_rest, own_rest, 0)[:, None]], -1)
    return divergence(renormalise(weights, every), torch.cat([log_q, rest_q[:, None]], -1), every)


def log_rest(
    hidden: Tensor, head: Head, ids: Tensor, valid: Tensor, temperature: float, chunk_rows: int
) -> Tensor:
    """log of the sum of exp(logit / temperature) over all ids outside the support.

    Args:
        hidden: [T, H].
        ids, valid: int64 and bool [T, K]; ids in invalid slots are outside.

    Returns:
        float32 [T], not normalised, differentiable in hidden and the head's tensors; -inf
        where the support has all ids that can be drawn.
    """
    result: Tensor = _LogRest.apply(  # type: ignore[no-untyped-call]
        hidden, *head.tensors, ids, valid, head, temperature, chunk_rows
    )
    return result


def _without_support(
    logits: Tensor, ids: Tensor, valid: Tensor, temperature: float, undrawn: Tensor | None
) -> Tensor:
    """[rows, V]: logits / temperature, -inf at the support and at ids that are never drawn."""
    # One more column takes the invalid slots.
    width = logits.shape[1]
    inside = torch.zeros(logits.shape[0], width + 1, dtype=torch.bool, device=logits.device)
    inside.scatter_(1, ids.where(valid, width), True)
    if undrawn is not None:
        inside[:, undrawn] = True
    return (logits / temperature).masked_fill(inside[:, :width], -torch.inf)


class _LogRest(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        down: Tensor | None,
        up: Tensor | None,
        ids: Tensor,
        valid: Tensor,
        head: Head,
        temperature: float,
        chunk_rows: int,
    ) -> Tensor:
        dtype = torch.promote_types(weight.dtype, torch.float32)
        out = torch.empty(ids.shape[0], dtype=dtype, device=hidden.device)
        for rows, _, logits in logits_blocks(hidden, head, chunk_rows):
            rest = _without_support(logits, ids[rows], valid[rows], temperature, head.undrawn)
            out[rows] = torch.logsumexp(rest, -1)
        ctx.save_for_backward(hidden, ids, valid, out)
        ctx.head, ctx.temperature, ctx.chunk_rows = head, temperature, chunk_rows
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        hidden, ids, valid, total = ctx.saved_tensors
        head: Head = ctx.head
        # Rows with nothing outside the support have no gradient.
        known = total.isfinite()

        def delta(rows: slice, logits: Tensor) -> Tensor:
            held = ids[rows], valid[rows]
            rest = _without_support(logits, *held, ctx.temperature, head.undrawn)
            share: Tensor = torch.exp(rest - total[rows].where(known[rows], 0)[:, None])
            upstream: Tensor = grad[rows].where(known[rows], 0) / ctx.temperature
            return share * upstream[:, None]

        gradients = add_logit_gradient(hidden, head, ctx.chunk_rows, delta, ctx.needs_input_grad)
        return (*gradients, None, None, None, None, None)
