"""The arms of the study, and the loss of each.

All arms take the rows that the product returns, with the bucket form of the loss. They differ
in what they do with the rows that it masks.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from teacher_proto.types import Bool
from torch import Tensor

from benchmarks.cells.cells import Cells, groups_by_level, label_of, merged, without
from benchmarks.cells.losses import LEAST_REST, coarse_kl, log_mass_ratio_of_sampled, path_kl
from benchmarks.cells.pair import pair, side
from benchmarks.cells.rows import Scored
from student_trainer.losses import Head, LossBatch, LossSettings, chunk_policy, lsm

Float64 = NDArray[np.float64]
SETTINGS = LossSettings(tail="bucket")


@dataclass(frozen=True)
class Arm:
    """What an arm does with masked rows.

    Attributes:
        chunks: rows that stay masked learn from their chunk.
        partial: what rows that are only partly known learn from; None: they stay masked.
            bucket: the certified ids and one rest. finest: cells, as fine as the walk knows
            them along the reply. residual: cells by the first thing the teacher writes, and
            the chunk's advantage beyond that of the drawn token's cell. path: cells at every
            step along the drawn token.
        exact: brute-force rows, for every token.
        extra_rounds: of further rows of the teacher.
    """

    name: str
    chunks: bool = False
    partial: Literal["bucket", "finest", "residual", "path"] | None = None
    exact: bool = False
    extra_rounds: int = 0


ARMS = (
    Arm("coarse", partial="bucket"),
    Arm("cells_path", chunks=True, partial="path"),
    Arm("extra_rows", partial="bucket", extra_rounds=2),
    Arm("exact", exact=True),
    Arm("masked"),
    Arm("cells_residual", chunks=True, partial="residual"),
    Arm("masked_chunks", chunks=True),
    Arm("coarse_chunks", chunks=True, partial="bucket"),
    Arm("cells_alone", chunks=True, partial="finest"),
)


@dataclass(frozen=True)
class Drawn:
    """The T tokens of an update as the teacher has scored them; ``exact``: probabilities
    [T, V], or None."""

    scored: Scored
    exact: Float64 | None = None


def arm_loss(arm: Arm, drawn: Drawn, hidden: Tensor, head: Head) -> tuple[Tensor, dict[str, float]]:
    """(mean loss over the rows that learn, shares of rows) of T rows, hidden [T, H]."""
    scored = drawn.scored
    sampled = torch.from_numpy(scored.ids)
    log_probs = log_softmax(hidden, head)
    if drawn.exact is not None:
        truth = torch.from_numpy(drawn.exact).clamp_min(1e-9)
        loss = (log_probs.exp() * (log_probs - truth.log())).sum(-1).mean()
        return loss, {"masked": 0.0, "partial": 0.0}
    old = log_probs.detach().gather(1, sampled[:, None])[:, 0]
    batch = _batch(scored, hidden, sampled, old)
    masked = scored.masked
    partial = _partial(arm, scored)
    assert batch.support_valid is not None
    lone = ~masked & (batch.support_valid.sum(-1) < 2).numpy()
    total = lsm(_weighted(batch, ~masked & ~lone), head, SETTINGS).total.double()
    if lone.any():
        # As the trainer has them learn: on the id and the rest.
        cells = [bucket_of(scored, at) for at in np.flatnonzero(lone).tolist()]
        total = total + coarse_kl(log_probs[torch.from_numpy(lone)], cells).sum()
    if partial.any():
        total = total + _partial_loss(arm, scored, partial, log_probs, batch, head)
    left = masked & ~partial
    if arm.chunks and left.any():
        advantages = _chunk_advantages(scored, old)
        total = total + chunk_policy(_weighted(batch, left), advantages, head, SETTINGS).total
    learn = len(masked) if arm.chunks else int((~left).sum())
    return total / learn, {"masked": float(left.mean()), "partial": float(partial.mean())}


def log_softmax(hidden: Tensor, head: Head) -> Tensor:
    """float64 [T, V], over the ids that are drawn."""
    return torch.log_softmax(head.finish_rows(hidden.double() @ head.weight.double().T), -1)


def _partial(arm: Arm, scored: Scored) -> Bool:
    """bool [T]: the rows that learn from a part of what the teacher says."""
    if arm.partial is None:
        return np.zeros_like(scored.partly)
    if arm.partial == "bucket":
        return scored.coarse
    return scored.partly


def _partial_loss(
    arm: Arm, scored: Scored, rows: Bool, log_probs: Tensor, batch: LossBatch, head: Head
) -> Tensor:
    """The sum over the rows of what the arm learns from them."""
    which = torch.from_numpy(np.flatnonzero(rows))
    places = which.tolist()
    if arm.partial == "bucket":
        cells = [bucket_of(scored, at) for at in places]
    else:
        cells = [scored.cells(at) for at in places]
    own = log_probs[which]
    if arm.partial in ("bucket", "finest"):
        return coarse_kl(own, cells).sum()
    student = pair().student
    tokens = batch.sampled_ids[which].tolist()
    levels = [
        groups_by_level(one, label_of(token, student))
        for one, token in zip(cells, tokens, strict=True)
    ]
    if arm.partial == "path":
        return path_kl(own, cells, levels).sum()
    first = [merged(one, groups[0]) for one, groups in zip(cells, levels, strict=True)]
    assert batch.old_log_probs is not None
    residual = _chunk_advantages(scored, batch.old_log_probs)
    residual[which] -= log_mass_ratio_of_sampled(own.detach(), first, batch.sampled_ids[which])
    policy = chunk_policy(_weighted(batch, rows), residual, head, SETTINGS)
    return coarse_kl(own, first).sum() + policy.total


def bucket_of(scored: Scored, index: int) -> Cells:
    """The certified ids and one rest."""
    count = int(scored.certified.counts[index])
    cell_of = np.zeros(pair().student.size, np.int64)
    cell_of[scored.certified.ids[index, :count]] = np.arange(1, count + 1)
    known = np.exp(scored.certified.log_probs[index, :count].astype(np.float64))
    mass = np.concatenate([[1 - scored.certified.coverage[index]], known])
    return without(Cells(cell_of, mass, (b"",) * (count + 1)), side(3).never)


def _batch(scored: Scored, hidden: Tensor, sampled: Tensor, old: Tensor) -> LossBatch:
    ids = torch.from_numpy(scored.certified.ids)
    known = torch.from_numpy(scored.certified.log_probs)
    removed = torch.isin(ids, torch.tensor(side(3).never))
    rest = 1 - torch.from_numpy(scored.certified.coverage)
    rest = rest + torch.where(removed, known.double().exp(), 0.0).sum(-1)
    return LossBatch(
        hidden=hidden,
        sampled_ids=sampled,
        weights=torch.ones(len(hidden)),
        support_ids=ids.long().clamp_min(0),
        support_log_probs=known,
        support_valid=(ids >= 0) & ~removed,
        teacher_log_tail=rest.clamp_min(LEAST_REST).log().float(),
        teacher_tail_valid=rest > LEAST_REST,
        old_log_probs=old.float(),
    )


def _weighted(batch: LossBatch, rows: Bool) -> LossBatch:
    """The batch with nothing but these rows."""
    return replace(batch, weights=torch.from_numpy(rows.astype(np.float32)))


def _chunk_advantages(scored: Scored, old: Tensor) -> Tensor:
    """float32 [T]."""
    return torch.from_numpy(scored.chunk_advantages(old.numpy())).float()
