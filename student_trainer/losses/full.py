"""Divergences over the whole vocabulary, with a teacher in the same process.

They are a reference for the losses on a support, and the objectives of other projects to
compare with. Both sides are computed in blocks of [rows, V], forward and backward.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from student_trainer.losses.parts.base import Head, LossBatch, LossResult, LossSettings, select_rows
from student_trainer.losses.parts.divergences import Divergence, jsd, reverse_kl
from student_trainer.losses.parts.normaliser import add_logit_gradient, logits_blocks

# Maps log p and log q, [rows, V], to the derivative of each row's loss by each p.
Slope = Callable[[Tensor, Tensor], Tensor]


def full_reverse_kl(batch: LossBatch, head: Head, settings: LossSettings) -> LossResult:
    """sum over the vocabulary of p (log p - log q)."""
    return _full(batch, head, settings, reverse_kl, lambda log_p, log_q: log_p - log_q)


def full_jsd(batch: LossBatch, head: Head, settings: LossSettings) -> LossResult:
    """beta KL(q || m) + (1 - beta) KL(p || m) over the vocabulary, ``settings.beta``."""
    beta = settings.beta
    divergence = jsd(beta)

    def slope(log_p: Tensor, log_q: Tensor) -> Tensor:
        m = beta * log_q.exp() + (1 - beta) * log_p.exp()
        return (1 - beta) * (log_p - m.clamp_min(torch.finfo(m.dtype).tiny).log())

    return _full(batch, head, settings, divergence, slope)


def _full(
    batch: LossBatch, head: Head, settings: LossSettings, divergence: Divergence, slope: Slope
) -> LossResult:
    """Rows with weight 0 or not finite on either side count in neither numerator nor
    denominator; the latter are counted as dropped.

    Raises:
        ValueError: the batch has no teacher in this process, or one of another width.
    """
    active = batch.weights > 0
    rows = select_rows(active & batch.hidden.detach().isfinite().all(-1))
    hidden = batch.hidden.index_select(0, rows)
    teacher = _Teacher(batch, rows, head.weight.shape[0], settings)
    losses: Tensor = _DivergenceInBlocks.apply(  # type: ignore[no-untyped-call]
        hidden, *head.tensors, head, settings, teacher, divergence, slope
    )
    # When some rows are not finite, a second call leaves them out, so that no gradient
    # passes through them.
    good = losses.detach().isfinite()
    if not bool(good.all()):
        used = torch.zeros_like(active)
        used[rows[good]] = True
        clean = replace(batch, weights=batch.weights.where(used, 0))
        result = _full(clean, head, settings, divergence, slope)
        return replace(result, dropped_non_finite=int((active & ~result.used).sum()))
    used = torch.zeros_like(active)
    used[rows] = True
    per_row = torch.zeros_like(batch.weights)
    per_row[rows] = losses.detach().to(per_row.dtype)
    return LossResult(
        total=(losses * batch.weights[rows]).sum(),
        per_row=per_row,
        used=used,
        dropped_non_finite=int((active & ~used).sum()),
    )


class _Teacher:
    """Log-probabilities of the teacher's rows, in blocks."""

    def __init__(
        self, batch: LossBatch, rows: Tensor, vocabulary: int, settings: LossSettings
    ) -> None:
        self.temperature = settings.temperature
        self.logits = self.hidden = None
        self.head = batch.teacher_head
        if batch.teacher_logits is not None:
            self.logits, width = batch.teacher_logits.detach(), batch.teacher_logits.shape[1]
        elif batch.teacher_hidden is not None and batch.teacher_head is not None:
            self.hidden, width = batch.teacher_hidden.detach(), batch.teacher_head.weight.shape[0]
        else:
            raise ValueError(
                "a loss over the whole vocabulary needs a teacher in this process: "
                "teacher_logits, or teacher_hidden and teacher_head"
            )
        if width != vocabulary:
            raise ValueError(
                f"the teacher has {width} ids and the student {vocabulary}: cut or pad one side"
            )
        self.rows = rows

    def log_probs(self, block: slice) -> Tensor:
        rows = self.rows[block]
        if self.logits is not None:
            logits = self.logits[rows]
            logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        else:
            assert self.hidden is not None
            assert self.head is not None
            ((_, _, logits),) = logits_blocks(self.hidden[rows], self.head, max(len(rows), 1))
        log_probs: Tensor = torch.log_softmax(logits / self.temperature, -1)
        return log_probs


class _DivergenceInBlocks(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        down: Tensor | None,
        up: Tensor | None,
        head: Head,
        settings: LossSettings,
        teacher: _Teacher,
        divergence: Divergence,
        slope: Slope,
    ) -> Tensor:
        dtype = torch.promote_types(weight.dtype, torch.float32)
        out = torch.empty(hidden.shape[0], dtype=dtype, device=hidden.device)
        for rows, _, logits in logits_blocks(hidden, head, settings.chunk_rows):
            log_p = torch.log_softmax(logits / settings.temperature, -1)
            log_q = teacher.log_probs(rows).to(dtype)
            out[rows] = divergence(log_p, log_q, torch.ones_like(log_p, dtype=torch.bool))
        ctx.save_for_backward(hidden)
        ctx.head, ctx.settings, ctx.teacher, ctx.slope = head, settings, teacher, slope
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (hidden,) = ctx.saved_tensors
        temperature = ctx.settings.temperature

        def delta(rows: slice, logits: Tensor) -> Tensor:
            log_p = torch.log_softmax(logits / temperature, -1)
            p = log_p.exp()
            slope = ctx.slope(log_p, ctx.teacher.log_probs(rows).to(p.dtype))
            centred = p * (slope - (p * slope).sum(-1, keepdim=True))
            scaled: Tensor = centred * (grad[rows] / temperature)[:, None]
            return scaled

        gradients = add_logit_gradient(
            hidden, ctx.head, ctx.settings.chunk_rows, delta, ctx.needs_input_grad
        )
        return (*gradients, None, None, None, None, None)
