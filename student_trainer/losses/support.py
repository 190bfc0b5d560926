"""Losses on a support: which rows count, which outcomes a row has, and one divergence.

    lsm               reverse KL   sum p (log p - log q)     arXiv 2603.25562
    topk_forward_kl   forward KL   sum q (log q - log p)
    topk_jsd          generalised Jensen-Shannon divergence
    unnormalised_reverse_kl   only for studies of its collapse

With ``tail="none"`` p and q are renormalised on the support; the normaliser over the
vocabulary cancels, and the [T, V] logits are never built. With ``tail="bucket"`` one more
outcome has the mass outside the support on each side, nothing is renormalised, and the
student's normaliser is computed in blocks of rows.
"""

from __future__ import annotations

import torch
from torch import Tensor

from student_trainer.losses.base import Head, LossBatch, LossResult, LossSettings, select_rows
from student_trainer.losses.divergences import (
    Divergence,
    forward_kl,
    jsd,
    renormalise,
    reverse_kl,
)
from student_trainer.losses.gathered import gathered_logits
from student_trainer.losses.tail import log_outside


def lsm(batch: LossBatch, head: Head, settings: LossSettings) -> LossResult:
    """Local Support Matching: renormalised reverse KL on the support, the default.

    Without a tail the gradient with respect to logit u of the support is
    p_u (log p_u - log q_u - l) / temperature, and exactly 0 outside.
    """
    return support_loss(batch, head, settings, reverse_kl)


def topk_forward_kl(batch: LossBatch, head: Head, settings: LossSettings) -> LossResult:
    """Forward KL on the support."""
    return support_loss(batch, head, settings, forward_kl)


def topk_jsd(batch: LossBatch, head: Head, settings: LossSettings) -> LossResult:
    """Generalised Jensen-Shannon divergence on the support, ``settings.beta``."""
    return support_loss(batch, head, settings, jsd(settings.beta))


def unnormalised_reverse_kl(batch: LossBatch, head: Head, settings: LossSettings) -> LossResult:
    """sum over the support of p (log p - log q), neither renormalised nor with a tail. It is
    least at p = q / e on the support, so it drives the student's mass there down. Only for
    studies of that collapse.

    Raises:
        ValueError: ``settings.study`` is not set.
    """
    if not settings.study:
        raise ValueError(
            "unnormalised_reverse_kl collapses the student's mass on the support: it is for "
            "studies of that alone, with LossSettings.study = true"
        )
    return support_loss(batch, head, settings, reverse_kl, normalise=False)


def support_loss(
    batch: LossBatch,
    head: Head,
    settings: LossSettings,
    divergence: Divergence,
    normalise: bool = True,
) -> LossResult:
    """Rows with weight 0, with fewer than two valid ids, or not finite on either side count
    in neither numerator nor denominator; the latter two are counted as dropped.

    Raises:
        ValueError: the batch lacks values that the settings need; or K < 2 without a tail,
            where the loss is 0 for every student.
    """
    ids, log_q, valid = _support(batch)
    if ids.shape[1] < 2 and settings.tail == "none" and normalise:
        raise ValueError(
            f"a support needs at least 2 ids, got {ids.shape[1]}: "
            "renormalised on one id the loss is 0 for every student"
        )
    active = batch.weights > 0
    enough = valid.sum(-1) >= 2
    finite = log_q.where(valid, 0).isfinite().all(-1)
    finite &= batch.hidden.detach().isfinite().all(-1)
    if settings.tail == "bucket" and normalise:
        tail, has_tail = _teacher_tail(batch)
        finite &= tail.where(has_tail, 0).isfinite()
    rows = select_rows(active & enough & finite)

    hidden, ids, valid, log_q = (
        batch.hidden.index_select(0, rows),
        ids[rows],
        valid[rows],
        log_q[rows],
    )
    logits = gathered_logits(hidden, head, ids.where(valid, 0))
    good = logits.detach().isfinite().all(-1)
    logits = torch.where(good[:, None], logits, 0)
    log_q = log_q.to(logits.dtype)
    if settings.tail == "none" and normalise:
        log_p = renormalise(logits / settings.temperature, valid)
        losses = divergence(log_p, renormalise(log_q, valid), valid)
    else:
        outside = log_outside(hidden, head, ids, valid, settings.temperature, settings.chunk_rows)
        scaled = logits / settings.temperature
        if normalise:
            losses = _with_tail(batch, rows, scaled, log_q, valid, outside, divergence)
        else:
            losses = divergence(_of_everything(scaled, valid, outside), log_q, valid)
    good = good & losses.detach().isfinite()
    losses = torch.where(good, losses, 0)
    bounded = losses if settings.row_clamp is None else losses.clamp_max(settings.row_clamp)

    used = torch.zeros_like(active)
    used[rows] = good
    per_row = torch.zeros_like(batch.weights)
    per_row[rows] = bounded.detach().to(per_row.dtype)
    metrics = _support_metrics(batch, rows[good], logits.detach()[good])
    if settings.row_clamp is not None:
        metrics["row_clamped"] = float((losses.detach() > settings.row_clamp).sum())
    return LossResult(
        total=(bounded * batch.weights[rows]).sum(),
        per_row=per_row,
        used=used,
        dropped_non_finite=int((active & enough & ~used).sum()),
        dropped_small_support=int((active & ~enough).sum()),
        metrics=metrics,
    )


def _of_everything(scaled: Tensor, valid: Tensor, outside: Tensor) -> Tensor:
    """log p of the support's slots, normalised over the whole vocabulary, [T, K]."""
    rest = outside.detach().isfinite()[:, None]
    weights = torch.cat([scaled, outside[:, None].where(rest, 0)], -1)
    return renormalise(weights, torch.cat([valid, rest], -1))[:, :-1]


def _with_tail(
    batch: LossBatch,
    rows: Tensor,
    scaled: Tensor,
    log_q: Tensor,
    valid: Tensor,
    outside: Tensor,
    divergence: Divergence,
) -> Tensor:
    """The divergence over the support and one outcome for the rest, [T].

    Args:
        rows: int64 [T], of the batch.
        scaled, log_q, valid: [T, K], student logits / temperature, teacher, valid slots.
        outside: [T], log of the student's weight outside the support, not normalised.
    """
    tail, known = _teacher_tail(batch)
    has_tail = known[rows] & outside.detach().isfinite()
    tail_q = tail[rows].to(scaled.dtype).where(has_tail, 0)
    every = torch.cat([valid, has_tail[:, None]], -1)
    weights = torch.cat([scaled, torch.where(has_tail, outside, 0)[:, None]], -1)
    return divergence(renormalise(weights, every), torch.cat([log_q, tail_q[:, None]], -1), every)


def _teacher_tail(batch: LossBatch) -> tuple[Tensor, Tensor]:
    if batch.teacher_log_tail is None or batch.teacher_tail_valid is None:
        raise ValueError('tail="bucket" needs the teacher\'s log_tail from the service')
    return batch.teacher_log_tail, batch.teacher_tail_valid


def _support(batch: LossBatch) -> tuple[Tensor, Tensor, Tensor]:
    if batch.support_ids is None or batch.support_log_probs is None or batch.support_valid is None:
        raise ValueError("the loss needs a support: ids, log-probabilities and validity")
    return batch.support_ids, batch.support_log_probs, batch.support_valid


def _support_metrics(batch: LossBatch, rows: Tensor, logits: Tensor) -> dict[str, float]:
    """Sums over the used rows."""
    ids, log_q, valid = (part[rows] for part in _support(batch))
    inside = ((ids == batch.sampled_ids[rows, None]) & valid).any(-1)
    log_q = log_q.where(valid, -torch.inf)
    best = logits.masked_fill(~valid, -torch.inf).argmax(-1)
    return {
        "teacher_support_mass": float(log_q.exp().sum()),
        "top1_agreement_on_support": float((best == log_q.argmax(-1)).sum()),
        "sampled_in_support": float(inside.sum()),
    }
