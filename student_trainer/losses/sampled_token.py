"""The sampled-token baseline: a policy gradient whose advantage is the log-ratio of teacher
to student at the sampled token (arXiv 2603.25562, token level).

    A_t = log q(y_t) - log pi_old(y_t)
    l_t = -min(r A, clip(r, 1 - c, 1 + c) A),   r = pi(y_t) / pi_old(y_t)

and for A < 0 at most dual_clip * |A|. With ``gamma`` the advantage includes later tokens
of the response: A_t = -R_t with the return R_t = sum over t' >= t of gamma^(t' - t) r_t',
r = log pi_old - log q; gamma 0 is token-level, gamma 1 sequence-level.
"""

from __future__ import annotations

import torch
from torch import Tensor

from student_trainer.losses.base import Head, LossBatch, LossResult, LossSettings, select_rows
from student_trainer.losses.normaliser import token_log_probs
from student_trainer.losses.returns import discounted_returns


def sampled_token(batch: LossBatch, head: Head, settings: LossSettings) -> LossResult:
    """Clipped policy gradient. Rows with weight 0, and rows without a finite log-probability
    on both sides, count in neither numerator nor denominator; the latter are counted as
    dropped. Neither adds to the returns of earlier rows.

    Raises:
        ValueError: the batch has no log-probabilities of the teacher or of the rollout, or
            no responses and steps although ``gamma`` needs them.
    """
    if batch.teacher_sampled is None or batch.old_log_probs is None:
        raise ValueError(
            "sampled_token needs the teacher's and the rollout's log-probability of the sampled "
            "token"
        )
    active = batch.weights > 0
    advantage = batch.teacher_sampled - batch.old_log_probs
    finite = advantage.isfinite() & batch.hidden.detach().isfinite().all(-1)
    if settings.gamma != 0:
        advantage = _returns(batch, advantage.where(active & finite, 0), settings.gamma)
    if settings.advantage_clamp is not None:
        advantage = advantage.clamp(-settings.advantage_clamp, settings.advantage_clamp)
    rows = select_rows(active & finite)

    log_probs = token_log_probs(
        batch.hidden.index_select(0, rows),
        head,
        batch.sampled_ids[rows],
        settings.temperature,
        settings.chunk_rows,
    )
    good = log_probs.detach().isfinite()
    chosen = advantage[rows].to(log_probs.dtype)
    ratio = torch.exp(torch.where(good, log_probs - batch.old_log_probs[rows], 0))
    clipped = ratio.clamp(1 - settings.clip, 1 + settings.clip)
    gain = torch.minimum(ratio * chosen, clipped * chosen)
    gain = torch.where(chosen < 0, torch.maximum(gain, settings.dual_clip * chosen), gain)
    losses = torch.where(good, -gain, 0)

    used = torch.zeros_like(active)
    used[rows] = good
    per_row = torch.zeros_like(batch.weights)
    per_row[rows] = losses.detach().to(per_row.dtype)
    outside = (ratio.detach() - 1).abs() > settings.clip
    return LossResult(
        total=(losses * batch.weights[rows]).sum(),
        per_row=per_row,
        used=used,
        dropped_non_finite=int((active & ~used).sum()),
        metrics={
            "advantage": float(chosen[good].sum()),
            "ratio": float(ratio.detach()[good].sum()),
            "ratio_clipped": float((outside & good).sum()),
        },
    )


def _returns(batch: LossBatch, advantage: Tensor, gamma: float) -> Tensor:
    """-R_t of the rewards -advantage, float [T]."""
    if batch.responses is None or batch.steps is None:
        raise ValueError("gamma needs to know which response and step each row is of")
    # Negating twice, the reward and the return, cancels.
    total = discounted_returns(advantage, batch.responses, batch.steps, gamma)
    return total.to(advantage.dtype)
