"""Which ids a support has, among those that the teacher was scored at.

The service returns the teacher's own top-K, and its log-probabilities at explicit ids
(the student's top-K) and at the sampled token:

    teacher            the teacher's top-K
    student            the student's top-K
    union              both, no id twice
    ...+sampled        and the sampled token

The mass outside the support follows from the mass outside the top-K:
tail(S) = tail(top) + sum of q over top but not S - sum of q over S but not top.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import torch
from teacher_proto.rows import required
from torch import Tensor

from student_trainer.losses.parts.base import LossBatch

SupportKind = Literal["teacher", "teacher+sampled", "student", "student+sampled", "union"]
# Below this share of the mass that it is subtracted from, float32 cannot resolve a tail.
TAIL_RESOLUTION = 1e-4


def choose_support(
    batch: LossBatch,
    support: SupportKind,
    *,
    mass: float | None = None,
    removed: Tensor | None = None,
) -> LossBatch:
    """The batch with the support of each row, and the teacher's tail outside it.

    Args:
        batch: ``support_*`` are the teacher's top-K in descending order, if it was
            requested; ``explicit_*`` its values at the student's ids;
            ``teacher_log_tail`` belongs to the top-K.
        support: which ids the support has.
        mass: keeps the teacher's ids, most likely first, until their probability reaches
            this value, never fewer than two; None keeps all K.
        removed: int64 [M], ids that are removed from every support.

    Returns:
        The batch with new ``support_*`` of K, K + 1 or 2 K slots and, if it has a tail,
        the tail outside this support. A tail that is too small to be resolved is NaN, so
        that the losses drop and count the row.

    Raises:
        ValueError: the batch lacks values that the support needs.
    """
    _check(batch, support, mass)
    top = _block(batch.support_ids, batch.support_log_probs, batch.support_valid)
    blocks: list[tuple[Tensor, Tensor, Tensor]] = []
    if support.startswith("teacher") or support == "union":
        ids, log_q, valid = required(top, "support_ids")
        blocks.append((ids, log_q, valid if mass is None else valid & _within(log_q, valid, mass)))
    if support.startswith("student") or support == "union":
        student = _block(batch.explicit_ids, batch.explicit_log_probs, batch.explicit_valid)
        blocks.append(required(student, "explicit_ids"))
    if support.endswith("+sampled"):
        sampled = required(batch.teacher_sampled, "teacher_sampled")[:, None]
        blocks.append((batch.sampled_ids[:, None], sampled, sampled.isfinite()))
    ids, log_q, valid = blocks[0]
    for more_ids, more_log_q, more_valid in blocks[1:]:
        new = more_valid & ~_member(more_ids, ids, valid)
        ids = torch.cat([ids, more_ids], -1)
        log_q = torch.cat([log_q, more_log_q.to(log_q.dtype)], -1)
        valid = torch.cat([valid, new], -1)
    if removed is not None and removed.numel():
        valid = valid & ~torch.isin(ids, removed)
    changed = replace(batch, support_ids=ids, support_log_probs=log_q, support_valid=valid)
    if top is None or batch.teacher_log_tail is None or batch.teacher_tail_valid is None:
        return changed
    tail, known = _tail(batch.teacher_log_tail, batch.teacher_tail_valid, top, (ids, log_q, valid))
    return replace(changed, teacher_log_tail=tail, teacher_tail_valid=known)


def single_ids_as_coarse(batch: LossBatch) -> LossBatch:
    """The batch in which rows of a single valid id and a rest are coarse too.

    Renormalised on its id such a row would teach nothing, and it is often one in which the
    teacher is sure: how a response ends is learnt there. A row of one id without a rest, or with
    one that is not finite, is no coarse row: it has nothing to be compared with, and the loss
    drops it.

    Args:
        batch: of a teacher with another tokenizer, with a support and its ``teacher_log_tail``.
    """
    tail = required(batch.teacher_log_tail, "teacher_log_tail")
    has_rest = required(batch.teacher_tail_valid, "teacher_tail_valid") & tail.isfinite()
    single = (required(batch.support_valid, "support_valid").sum(-1) == 1) & has_rest
    return replace(batch, coarse=batch.coarse_rows | single) if bool(single.any()) else batch


def _check(batch: LossBatch, support: SupportKind, mass: float | None) -> None:
    needs = {
        "teacher's top-K (support_ids)": batch.support_ids is None
        and (support.startswith("teacher") or support == "union"),
        "teacher at the student's ids (explicit_ids)": batch.explicit_ids is None
        and (support.startswith("student") or support == "union"),
        "teacher at the sampled token (teacher_sampled)": batch.teacher_sampled is None
        and support.endswith("+sampled"),
    }
    missing = [name for name, absent in needs.items() if absent]
    if missing:
        raise ValueError(f"support {support!r} needs the {missing[0]}")
    if mass is not None and not 0 < mass <= 1:
        raise ValueError(f"mass must lie in (0, 1], got {mass}")
    if mass is not None and support.startswith("student"):
        raise ValueError("mass cuts the teacher's ids: it needs a support that holds them")


def _block(
    ids: Tensor | None, log_q: Tensor | None, valid: Tensor | None
) -> tuple[Tensor, Tensor, Tensor] | None:
    if ids is None or log_q is None or valid is None:
        return None
    return ids, log_q, valid


def _within(log_q: Tensor, valid: Tensor, mass: float) -> Tensor:
    """bool [T, K]: slots whose predecessors do not reach ``mass`` yet, and the first two."""
    # A value that is not finite is kept, so that the loss sees and drops its row.
    q = log_q.double().exp().where(valid & log_q.isfinite(), 0)
    before = q.cumsum(-1) - q
    first = valid.cumsum(-1) <= 2
    return (before < mass) | first | ~log_q.isfinite()


def _member(ids: Tensor, among: Tensor, valid: Tensor) -> Tensor:
    """bool [T, E]: whether each id is among the row's valid ids of ``among``, [T, K]."""
    ordered = among.where(valid, -1).sort(-1).values
    place = torch.searchsorted(ordered, ids.contiguous()).clamp_max(ordered.shape[1] - 1)
    return ordered.gather(-1, place) == ids


def _tail(
    log_tail: Tensor,
    known: Tensor,
    top: tuple[Tensor, Tensor, Tensor],
    support: tuple[Tensor, Tensor, Tensor],
) -> tuple[Tensor, Tensor]:
    top_ids, top_log_q, top_valid = top
    ids, log_q, valid = support
    left = top_valid & ~_member(top_ids, ids, valid)
    extra = valid & ~_member(ids, top_ids, top_valid)
    added = log_tail.double().exp().where(known, 0) + _mass(top_log_q, left)
    taken = _mass(log_q, extra)
    rest = added - taken
    resolved = (taken == 0) | (rest > TAIL_RESOLUTION * added)
    outcome = known | left.any(-1)
    log_rest = torch.where(resolved, rest, torch.nan).where(outcome, 1).log()
    return log_rest.to(log_tail.dtype), outcome


def _mass(log_q: Tensor, chosen: Tensor) -> Tensor:
    return log_q.double().exp().where(chosen, 0).sum(-1)
