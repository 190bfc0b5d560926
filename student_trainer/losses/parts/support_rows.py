"""Losses on a support: which rows count, which outcomes a row has, and one divergence.

With ``tail="none"`` p and q are renormalised on the support; the normaliser over the
vocabulary cancels, and the [T, V] logits are never built. With ``tail="bucket"`` a row is
compared on its support and the rest, which is all mass outside the support of each side; nothing
is renormalised, and the student's normaliser is computed in blocks of rows. Coarse rows are
compared so whatever the tail is.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, Protocol

import torch
from torch import Tensor

from student_trainer.losses.parts.base import Head, LossBatch, LossResult, select_rows
from student_trainer.losses.parts.divergences import Divergence, renormalise
from student_trainer.losses.parts.gathered import gathered_logits
from student_trainer.losses.parts.rest import divergence_with_rest, log_rest


class RowTerms(Protocol):
    """What every loss on a support reads of its settings."""

    @property
    def temperature(self) -> float: ...
    @property
    def chunk_rows(self) -> int: ...
    @property
    def row_clamp(self) -> float | None: ...


class SupportTerms(RowTerms, Protocol):
    """And what one reads that can compare a support with the rest."""

    @property
    def tail(self) -> Literal["none", "bucket"]: ...


def support_loss(
    batch: LossBatch,
    head: Head,
    settings: SupportTerms,
    divergence: Divergence,
) -> LossResult:
    """The divergence of each row on its support, renormalised there or with the rest.

    Rows with weight 0, with fewer than two valid ids (a coarse row: fewer than one and a
    rest), or not finite on either side count in neither numerator nor denominator; the latter
    two are counted as dropped.

    Raises:
        ValueError: the batch lacks values that the settings need; or K < 2 without a tail,
            where the loss is 0 for every student.
    """
    ids, _, valid = support_of(batch)
    if ids.shape[1] < 2 and settings.tail == "none" and batch.coarse is None:
        raise ValueError(
            f"a support needs at least 2 ids, got {ids.shape[1]}: "
            "renormalised on one id the loss is 0 for every student"
        )
    count = valid.sum(-1)
    enough = count >= 2
    finite = torch.ones_like(enough)
    if settings.tail == "bucket" or batch.coarse is not None:
        tail, has_tail = _teacher_tail(batch)
        enough |= batch.coarse_rows & has_tail & (count == 1)
        with_rest = has_tail if settings.tail == "bucket" else has_tail & batch.coarse_rows
        finite = tail.where(with_rest, 0).isfinite()

    def losses(rows: Tensor, hidden: Tensor, logits: Tensor) -> Tensor:
        return _normalised(batch, rows, hidden, head, logits, settings, divergence)

    return _result(batch, head, enough, finite, losses, settings.row_clamp)


def unnormalised_loss(
    batch: LossBatch, head: Head, settings: RowTerms, divergence: Divergence, least_ids: int
) -> LossResult:
    """The divergence of each row on its support, with both sides as probabilities of the whole
    vocabulary. It needs the student's normaliser, computed in blocks of rows, and no rest: coarse
    rows are computed as the others.

    Rows with weight 0, with fewer than ``least_ids`` valid ids, or not finite on either side count
    in neither numerator nor denominator; the latter two are counted as dropped.

    Raises:
        ValueError: the batch has no support.
    """
    ids, log_q, valid = support_of(batch)

    def losses(rows: Tensor, hidden: Tensor, logits: Tensor) -> Tensor:
        at = ids[rows], valid[rows], settings.temperature, settings.chunk_rows
        log_p = _of_everything(
            logits / settings.temperature, valid[rows], log_rest(hidden, head, *at)
        )
        return divergence(log_p, log_q[rows].to(logits.dtype), valid[rows])

    enough = valid.sum(-1) >= least_ids
    return _result(batch, head, enough, torch.ones_like(enough), losses, settings.row_clamp)


def refuse_coarse(batch: LossBatch, name: str) -> None:
    """Raises ValueError where a coarse row has a weight."""
    if bool((batch.coarse_rows & (batch.weights > 0)).any()):
        raise ValueError(
            f"{name} does not compare the rest of a coarse row: give coarse "
            "rows weight 0, or do not ask the service for them"
        )


def _result(
    batch: LossBatch,
    head: Head,
    enough: Tensor,
    finite: Tensor,
    losses_of: Callable[[Tensor, Tensor, Tensor], Tensor],
    row_clamp: float | None,
) -> LossResult:
    """The loss of the rows that count.

    Args:
        enough: bool [T], whether a row has enough valid ids.
        finite: bool [T], whether what the loss reads besides the support is finite.
        losses_of: maps R rows of the batch, int64 [R], with their hidden states and the logits of
            their support, [R, H] and [R, K], to their losses [R].
    """
    ids, log_q, valid = support_of(batch)
    coarse = batch.coarse_rows
    active = batch.weights > 0
    finite = finite & log_q.where(valid, 0).isfinite().all(-1)
    finite &= batch.hidden.detach().isfinite().all(-1)
    rows = select_rows(active & enough & finite)

    hidden = batch.hidden.index_select(0, rows)
    logits = gathered_logits(hidden, head, ids[rows].where(valid[rows], 0))
    good = logits.detach().isfinite().all(-1)
    logits = torch.where(good[:, None], logits, 0)
    losses = losses_of(rows, hidden, logits)
    good = good & losses.detach().isfinite()
    losses = torch.where(good, losses, 0)
    bounded = losses if row_clamp is None else losses.clamp_max(row_clamp)

    used = torch.zeros_like(active)
    used[rows] = good
    per_row = torch.zeros_like(batch.weights)
    per_row[rows] = bounded.detach().to(per_row.dtype)
    of_full, of_coarse = good & ~coarse[rows], good & coarse[rows]
    metrics = _support_metrics(batch, rows[of_full], logits.detach()[of_full])
    coarse_metrics: dict[str, float] = {}
    if batch.coarse is not None:
        coarse_metrics["coarse_loss"] = float(per_row[rows][of_coarse].sum())
    if row_clamp is not None:
        clamped = losses.detach() > row_clamp
        metrics["row_clamped"] = float((clamped & of_full).sum())
        if batch.coarse is not None:
            coarse_metrics["row_clamped"] = float((clamped & of_coarse).sum())
    return LossResult(
        total=(bounded * batch.weights[rows]).sum(),
        per_row=per_row,
        used=used,
        dropped_non_finite=int((active & enough & ~used).sum()),
        dropped_small_support=int((active & ~enough).sum()),
        metrics=metrics,
        coarse_metrics=coarse_metrics,
    )


def _normalised(
    batch: LossBatch,
    rows: Tensor,
    hidden: Tensor,
    head: Head,
    logits: Tensor,
    settings: SupportTerms,
    divergence: Divergence,
) -> Tensor:
    """The divergence of each row on its support, renormalised there or with the rest.
    Only rows of the second kind are multiplied with the whole head, [R].

    Args:
        rows: int64 [R], of the batch.
        hidden, logits: [R, H] and [R, K], of these rows.
    """
    ids, log_q, valid = (part[rows] for part in support_of(batch))
    scaled, log_q = logits / settings.temperature, log_q.to(logits.dtype)

    def on_support(at: Tensor) -> Tensor:
        log_p = renormalise(scaled[at], valid[at])
        return divergence(log_p, renormalise(log_q[at], valid[at]), valid[at])

    def with_rest(at: Tensor) -> Tensor:
        own_rest = log_rest(
            hidden.index_select(0, at), head, ids[at], valid[at],
            settings.temperature, settings.chunk_rows,
        )  # fmt: skip
        tail, known = (part[rows[at]] for part in _teacher_tail(batch))
        return divergence_with_rest(
            scaled[at], log_q[at], valid[at], own_rest, (tail, known), divergence
        )

    every = torch.arange(len(rows), device=rows.device)
    if settings.tail == "bucket":
        return with_rest(every)
    if batch.coarse is None:
        return on_support(every)
    coarse = batch.coarse[rows]
    of_full, of_coarse = every[~coarse], every[coarse]
    losses = logits.new_zeros(len(rows))
    return losses.index_put((of_full,), on_support(of_full)).index_put(
        (of_coarse,), with_rest(of_coarse)
    )


def _of_everything(scaled: Tensor, valid: Tensor, own_rest: Tensor) -> Tensor:
    """log p of the support's slots, normalised over the whole vocabulary, [T, K]."""
    has_rest = own_rest.detach().isfinite()[:, None]
    weights = torch.cat([scaled, own_rest[:, None].where(has_rest, 0)], -1)
    return renormalise(weights, torch.cat([valid, has_rest], -1))[:, :-1]


def _teacher_tail(batch: LossBatch) -> tuple[Tensor, Tensor]:
    if batch.teacher_log_tail is None or batch.teacher_tail_valid is None:
        raise ValueError(
            'tail="bucket" and coarse rows need the teacher\'s log_tail from the service'
        )
    return batch.teacher_log_tail, batch.teacher_tail_valid


def support_of(batch: LossBatch) -> tuple[Tensor, Tensor, Tensor]:
    """Ids, log-probabilities and validity of the support, [T, K]. Raises ValueError without one."""
    if batch.support_ids is None or batch.support_log_probs is None or batch.support_valid is None:
        raise ValueError("the loss needs a support: ids, log-probabilities and validity")
    return batch.support_ids, batch.support_log_probs, batch.support_valid


def _support_metrics(batch: LossBatch, rows: Tensor, logits: Tensor) -> dict[str, float]:
    """Sums over these rows."""
    ids, log_q, valid = (part[rows] for part in support_of(batch))
    inside = ((ids == batch.sampled_ids[rows, None]) & valid).any(-1)
    log_q = log_q.where(valid, -torch.inf)
    best = logits.masked_fill(~valid, -torch.inf).argmax(-1)
    return {
        "teacher_support_mass": float(log_q.exp().sum()),
        "top1_agreement_on_support": float((best == log_q.argmax(-1)).sum()),
        "sampled_in_support": float(inside.sum()),
    }
