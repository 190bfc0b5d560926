"""Rows of which some are coarse, and their losses over the whole vocabulary in float64: certified
ids, and the rest of both sides."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from student_trainer.losses import Head, LossBatch, LossSettings
from tests.support.loss_reference import (
    FORWARD_WEIGHT,
    THRESHOLD,
    Problem,
    full_logits,
    with_batch,
)

T, V, K = 13, 37, 5
NAMES = ["lsm", "topk_forward_kl", "topk_jsd", "entropy_switch"]
SUPPORTS = ["teacher", "teacher+sampled", "student", "student+sampled", "union"]
HEADS: list[dict[str, Any]] = [
    {},
    {"bias": True, "scale": 2.0, "softcap": 4.0},
    {"lora": True, "bias": True, "scale": 0.5},
]
SETTINGS = LossSettings(temperature=0.7, chunk_rows=4, beta=0.3)
COARSE = torch.arange(T) % 3 == 1


def two_sides(name: str, p: Tensor, q: Tensor, *, rest: bool = True) -> Tensor:
    """The definition, over outcomes that all have mass; ``rest``: whether the last one is the
    rest."""
    if name == "entropy_switch":
        ids = q[:-1] if rest else q
        alone = ids / ids.sum()
        unsure = float(-(alone * alone.log()).sum()) > THRESHOLD
        added = FORWARD_WEIGHT * (q * (q / p).log()).sum() if unsure else 0
        return (p * (p / q).log()).sum() + added
    if name == "lsm":
        return (p * (p / q).log()).sum()
    if name == "topk_forward_kl":
        return (q * (q / p).log()).sum()
    m = 0.3 * q + 0.7 * p
    return 0.3 * (q * (q / m).log()).sum() + 0.7 * (p * (p / m).log()).sum()


def reference(
    name: str, batch: LossBatch, head: Head, chosen: list[set[int]], coarse: Tensor
) -> Tensor:
    """[T], id by id over the vocabulary: ``chosen`` are the ids that each row compares, a coarse
    row with the sum over all the others beside them, another one renormalised."""
    logits = full_logits(batch.hidden, head) / 0.7
    drawn = torch.ones(V, dtype=torch.bool)
    if head.undrawn is not None:
        drawn[head.undrawn] = False
    rows = []
    for t in range(T):
        p = torch.zeros(V, dtype=torch.float64)
        p = p.masked_scatter(drawn, torch.softmax(logits[t][drawn], -1))
        q = batch.teacher_logits[t].exp()  # type: ignore[index]
        inside = torch.tensor(sorted(chosen[t]), dtype=torch.int64)
        outside = torch.tensor([v for v in range(V) if v not in chosen[t]])
        ps, qs = p[inside], q[inside]
        if coarse[t]:
            ps = torch.cat([ps, p[outside].sum()[None]])
            qs = torch.cat([qs, q[outside].sum()[None]])
        else:
            ps, qs = ps / ps.sum(), qs / qs.sum()
        row = two_sides(name, ps, qs, rest=bool(coarse[t])) if len(ps) > 1 else p.new_zeros(())
        rows.append(row)
    return torch.stack(rows)


def certified(case: Problem) -> Problem:
    """The case's coarse rows have ids that are not the teacher's most likely ones, one of them
    a single id; the service's tail of each row is of all others."""
    q = case.batch.teacher_logits.exp()  # type: ignore[union-attr]
    order = q.argsort(-1, descending=True)
    ids = torch.where(COARSE[:, None], order[:, 2 : 2 + K], order[:, :K])
    valid = case.batch.support_valid.clone()  # type: ignore[union-attr]
    valid[1] = torch.arange(K) < 1
    at = q.gather(1, ids)
    rest = torch.stack([q[t].sum() - at[t][valid[t]].sum() for t in range(T)])
    return with_batch(
        case,
        support_ids=ids,
        support_log_probs=at.log(),
        support_valid=valid,
        teacher_log_tail=rest.log(),
        coarse=COARSE,
    )


def ids_of(batch: LossBatch) -> list[set[int]]:
    assert batch.support_ids is not None
    assert batch.support_valid is not None
    return [set(batch.support_ids[t][batch.support_valid[t]].tolist()) for t in range(T)]


def same(actual: Tensor, expected: Tensor, case: Problem) -> None:
    """Value and every gradient agree to 1e-9 of the largest entry."""
    leaves = case.leaves
    torch.testing.assert_close(actual, expected, rtol=1e-9, atol=0)
    ours, theirs = (torch.autograd.grad(x, leaves, retain_graph=True) for x in (actual, expected))
    for a, b in zip(ours, theirs, strict=True):
        assert float((a - b).abs().max()) <= 1e-9 * float(b.abs().max())
