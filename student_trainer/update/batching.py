"""From scored rollouts to micro-batches of rows.

ALIGNMENT: the hidden state at position p predicts the token at p + 1. Row t of
a response behind a prompt of P tokens judges the token at position P + t, so it
reads the hidden state at P + t - 1.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from teacher_proto.types import Bool, ContinuationScores, Int32, Status
from torch import Tensor

from student_trainer.losses.base import LossBatch
from student_trainer.rollout.base import Rollout

Array = NDArray[Any]


@dataclass(frozen=True)
class MicroBatch:
    """Responses that go through the model together.

    Attributes:
        members: indices of the responses in the update, in the batch's order.
        rows: int64 [T], indices into the flattened [B * Lmax] hidden states.
        owners: int64 [T], which member each row belongs to.
        steps: int64 [T], the row's place t in its response.
    """

    members: tuple[int, ...]
    rows: Tensor
    owners: Tensor
    steps: Tensor


def sequence(rollout: Rollout) -> Int32:
    """int32 [P + n - 1]: what the student reads to judge every response token.

    The last token is judged, never read.
    """
    return np.concatenate([rollout.prompt.token_ids, rollout.token_ids[:-1]]).astype(np.int32)


def plan(lengths: Sequence[int], budget: int) -> list[tuple[int, ...]]:
    """Cuts sequences into micro-batches of at most ``budget`` padded tokens.

    Longest first, equal lengths by index: the result depends on the lengths
    alone. A sequence longer than the budget is an AssertionError; settings
    exclude it.
    """
    assert max(lengths) <= budget, "settings bound the longest sequence by the budget"
    order = sorted(range(len(lengths)), key=lambda index: (-lengths[index], index))
    batches: list[tuple[int, ...]] = []
    current: list[int] = []
    for index in order:
        if current and lengths[current[0]] * (len(current) + 1) > budget:
            batches.append(tuple(current))
            current = []
        current.append(index)
    return [*batches, tuple(current)]


def micro_batch(
    members: Sequence[int], rollouts: Sequence[Rollout], keep: Sequence[Bool]
) -> MicroBatch:
    """Gathers the rows to use.

    Args:
        members: indices into the two sequences that follow.
        rollouts: of the whole update.
        keep: bool [n] per rollout, False where a row is masked.
    """
    chosen = [rollouts[member] for member in members]
    width = max(len(sequence(rollout)) for rollout in chosen)
    rows, owners, steps = [], [], []
    for place, (member, rollout) in enumerate(zip(members, chosen, strict=True)):
        kept = np.flatnonzero(keep[member])
        rows.append(place * width + len(rollout.prompt.token_ids) - 1 + kept)
        owners.append(np.full(len(kept), place))
        steps.append(kept)
    return MicroBatch(tuple(members), _int64(rows), _int64(owners), _int64(steps))


def loss_batch(
    batch: MicroBatch,
    hidden: Tensor,
    rollouts: Sequence[Rollout],
    scores: Mapping[int, ContinuationScores],
    top_k: int,
) -> LossBatch:
    """The rows of a micro-batch as the losses take them, every weight 1.

    Args:
        hidden: [B, Lmax, H] of the batch's members.
        rollouts, scores: of the whole update, by the same index. A continuation
            the teacher could not score (not finite) has NaN in every slot, which
            the losses drop and count.
        top_k: size K that was asked for; 0 gives a batch without the teacher's
            own ids. ``Rollout.support_ids`` come as the explicit ids.
    """
    device = hidden.device
    columns = [
        _columns(
            rollouts[member], scores[member], batch.steps[batch.owners == place].numpy(), top_k
        )
        for place, member in enumerate(batch.members)
    ]
    ids, log_probs, valid, tail, tail_valid, sampled, teacher, old = (
        np.concatenate(parts) for parts in zip(*columns, strict=True)
    )
    ids = np.where(valid, ids, 0).astype(np.int64)
    asked, asked_log_probs, asked_valid = _explicit(batch, rollouts, scores, device)
    return LossBatch(
        hidden=hidden.flatten(0, 1).index_select(0, batch.rows.to(device)),
        sampled_ids=torch.from_numpy(sampled.astype(np.int64)).to(device),
        weights=torch.ones(len(sampled), device=device),
        support_ids=torch.from_numpy(ids).to(device) if top_k else None,
        support_log_probs=torch.from_numpy(log_probs).to(device) if top_k else None,
        support_valid=torch.from_numpy(valid).to(device) if top_k else None,
        teacher_log_tail=torch.from_numpy(tail).to(device),
        teacher_tail_valid=torch.from_numpy(tail_valid).to(device),
        teacher_sampled=torch.from_numpy(teacher).to(device),
        old_log_probs=torch.from_numpy(old).to(device),
        explicit_ids=asked,
        explicit_log_probs=asked_log_probs,
        explicit_valid=asked_valid,
        responses=batch.owners.to(device),
        steps=batch.steps.to(device),
    )


def sequence_weights(used: Tensor, owners: Tensor, members: int) -> Tensor:
    """float32 [T]: 1 / (used rows of the row's response), 0 where not used."""
    counts = torch.zeros(members, device=used.device).index_add_(0, owners, used.float())
    return torch.where(used, 1.0 / counts.clamp(min=1.0)[owners], 0.0)


def _explicit(
    batch: MicroBatch,
    rollouts: Sequence[Rollout],
    scores: Mapping[int, ContinuationScores],
    device: torch.device,
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Ids, log-probabilities and validity [T, E] of the teacher at the rollouts' own
    ids; None where none were asked for."""
    parts = []
    for place, member in enumerate(batch.members):
        asked, answer = rollouts[member].support_ids, scores[member]
        if asked is None:
            return None, None, None
        steps = batch.steps[batch.owners == place].numpy()
        ids = asked[steps].astype(np.int64)
        log_probs = np.full(ids.shape, np.nan, np.float32)
        valid = np.ones(ids.shape, np.bool_)
        if answer.status is Status.OK:
            assert answer.explicit_log_probs is not None
            assert answer.explicit_valid is not None
            log_probs, valid = answer.explicit_log_probs[steps], answer.explicit_valid[steps]
        parts.append((ids, log_probs, valid))
    asked_ids, asked_log_probs, asked_valid = (
        torch.from_numpy(np.concatenate(column)).to(device) for column in zip(*parts, strict=True)
    )
    return asked_ids, asked_log_probs, asked_valid


def _columns(
    rollout: Rollout, scores: ContinuationScores, steps: Array, top_k: int
) -> tuple[Array, ...]:
    """Support ids, log-probabilities and validity [T, K]; the tail and its validity,
    sampled ids, the teacher's and the old log-probabilities of these [T].

    What the teacher was not asked for is NaN: no loss can use it unseen.
    """
    rows = len(steps)
    ids = np.zeros((rows, top_k), np.int32)
    log_probs = np.full((rows, top_k), np.nan, np.float32)
    valid = np.ones((rows, top_k), np.bool_)
    teacher = np.full(rows, np.nan, np.float32)
    tail, tail_valid = np.full(rows, np.nan, np.float32), np.ones(rows, np.bool_)
    if scores.status is Status.OK:
        assert scores.sampled_log_probs is not None
        assert scores.sampled_valid is not None
        known = scores.sampled_valid[steps]
        teacher[known] = scores.sampled_log_probs[steps][known]
        if top_k:
            assert scores.top_ids is not None
            assert scores.top_log_probs is not None
            assert scores.valid_counts is not None
            ids, log_probs = scores.top_ids[steps], scores.top_log_probs[steps]
            valid = np.arange(top_k) < scores.valid_counts[steps, None]
        if scores.log_tail is not None and scores.log_tail_valid is not None:
            tail, tail_valid = scores.log_tail[steps], scores.log_tail_valid[steps]
    sampled, old = rollout.token_ids[steps], rollout.log_probs[steps]
    return ids, log_probs, valid, tail, tail_valid, sampled, teacher, old


def _int64(parts: Sequence[Array]) -> Tensor:
    return torch.from_numpy(np.concatenate(parts).astype(np.int64))
