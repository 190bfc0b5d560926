"""Ids that no token has: every loss is that of a head without them."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from student_trainer.losses import Head, LossSettings
from student_trainer.losses.parts.base import LossBatch, LowRank
from student_trainer.losses.parts.normaliser import row_statistics, token_log_probs, top_ids
from tests.support.loss_reference import FUNCTIONS, problem

UNDRAWN = (0, 17, 18, 39)
SETTINGS = {
    "none": LossSettings(temperature=0.7, chunk_rows=4, study=True),
    "bucket": LossSettings(temperature=0.7, chunk_rows=4, study=True, tail="bucket"),
    "returns": LossSettings(temperature=0.7, chunk_rows=4, gamma=0.5),
}
CASES = [
    *(("none", name) for name in FUNCTIONS),
    *(("bucket", name) for name in ("lsm", "topk_forward_kl", "topk_jsd")),
    ("returns", "sampled_token"),
]


def heads(softcap: float | None) -> tuple[Head, Head, Tensor]:
    """A head of 40 ids whose undrawn ones would be the most likely, the same without them,
    and the ids that the second kept."""
    made = torch.Generator().manual_seed(3)
    weight = torch.randn(40, 6, generator=made, dtype=torch.float64)
    bias = torch.randn(40, generator=made, dtype=torch.float64)
    down = torch.randn(2, 6, generator=made, dtype=torch.float64)
    up = torch.randn(40, 2, generator=made, dtype=torch.float64)
    bias[list(UNDRAWN)] += 20
    kept = torch.tensor([i for i in range(40) if i not in UNDRAWN])
    leaves = [t.requires_grad_() for t in (weight, bias, down, up)]
    whole = Head(leaves[0], leaves[1], 0.5, softcap, lora=LowRank(leaves[2], leaves[3], 0.5))
    whole = replace(whole, undrawn=torch.tensor(UNDRAWN))
    cut_up = up.detach()[kept].requires_grad_()
    cut = Head(
        weight.detach()[kept].requires_grad_(),
        bias.detach()[kept].requires_grad_(),
        0.5,
        softcap,
        lora=LowRank(down.detach().clone().requires_grad_(), cut_up, 0.5),
    )
    return whole, cut, kept


def batches(kept: Tensor) -> tuple[LossBatch, LossBatch]:
    """The same rows in the ids of both heads, with what every loss needs."""
    made = torch.Generator().manual_seed(4)
    rows, k = 9, 5
    scores = torch.rand(rows, len(kept), generator=made, dtype=torch.float64)
    support = scores.topk(k, -1).indices
    logits = torch.randn(rows, len(kept), generator=made, dtype=torch.float64)
    log_q = torch.log_softmax(logits, -1)
    at_support = log_q.gather(1, support)
    sampled = torch.randint(0, len(kept), (rows,), generator=made)
    cut = LossBatch(
        hidden=torch.randn(rows, 6, generator=made, dtype=torch.float64).requires_grad_(),
        sampled_ids=sampled,
        weights=torch.ones(rows, dtype=torch.float64),
        support_ids=support,
        support_log_probs=at_support,
        support_valid=torch.rand(rows, k, generator=made) > 0.1,
        teacher_log_tail=torch.log1p(-at_support.exp().sum(-1)),
        teacher_tail_valid=torch.ones(rows, dtype=torch.bool),
        teacher_sampled=log_q.gather(1, sampled[:, None]).squeeze(1),
        old_log_probs=torch.full((rows,), -3.0, dtype=torch.float64),
        responses=torch.tensor([0] * 5 + [1] * 4),
        steps=torch.tensor([0, 1, 2, 3, 4, 0, 1, 2, 3]),
        teacher_logits=logits,
    )
    wide = torch.full((rows, 40), -1e4, dtype=torch.float64)
    wide[:, kept] = logits
    whole = replace(
        cut,
        hidden=cut.hidden.detach().clone().requires_grad_(),
        sampled_ids=kept[sampled],
        support_ids=kept[support],
        teacher_logits=wide,
    )
    return whole, cut


@pytest.mark.parametrize("softcap", [None, 5.0])
@pytest.mark.parametrize(("settings", "name"), CASES)
def test_a_loss_is_that_of_a_head_without_them(
    settings: str, name: str, softcap: float | None
) -> None:
    whole_head, cut_head, kept = heads(softcap)
    whole, cut = batches(kept)
    found = FUNCTIONS[name](whole, whole_head, SETTINGS[settings])
    expected = FUNCTIONS[name](cut, cut_head, SETTINGS[settings])
    assert int(found.used.sum()) == int(expected.used.sum()) > 0
    torch.testing.assert_close(found.per_row, expected.per_row, rtol=1e-9, atol=1e-11)
    ours = torch.autograd.grad(found.total, [whole.hidden, *whole_head.tensors])
    theirs = torch.autograd.grad(expected.total, [cut.hidden, *cut_head.tensors])
    for place, (a, b) in enumerate(zip(ours, theirs, strict=True)):
        if place in (1, 2, 4):  # weight, bias and the adapter's up have a row an id
            assert not a[list(UNDRAWN)].any()
            a = a[kept]
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11)


def test_figures_and_likelihoods_leave_them_out() -> None:
    whole_head, cut_head, kept = heads(None)
    whole, cut = batches(kept)
    ours = token_log_probs(whole.hidden, whole_head, whole.sampled_ids, 0.7, 4)
    theirs = token_log_probs(cut.hidden, cut_head, cut.sampled_ids, 0.7, 4)
    torch.testing.assert_close(ours, theirs)
    a, b = (
        row_statistics(
            one.hidden, head, one.sampled_ids, 0.7, 4, one.support_ids, one.support_valid
        )
        for one, head in ((whole, whole_head), (cut, cut_head))
    )
    for name in ("entropy", "sampled_log_probs", "support_mass", "support_overlap"):
        torch.testing.assert_close(getattr(a, name), getattr(b, name))
    best = top_ids(whole.hidden, whole_head, len(kept), 4, 40)
    assert torch.equal(best, kept[top_ids(cut.hidden, cut_head, len(kept), 4, 36)])
    with pytest.raises(ValueError, match="the top 37 of 36 ids"):
        top_ids(whole.hidden, whole_head, 37, 4, 40)
    assert int(top_ids(whole.hidden, whole_head, 20, 4, 25).max()) < 25


def test_nothing_is_outside_a_support_of_all_that_can_be_drawn() -> None:
    whole_head, cut_head, kept = heads(None)
    results = []
    for batch, head in zip(batches(kept), (whole_head, cut_head), strict=True):
        ids = kept if head is whole_head else torch.arange(len(kept))
        log_q = torch.log_softmax(batch.teacher_logits[:, ids], -1) - 0.1
        every = ids.expand(len(log_q), -1)
        valid = torch.ones_like(every, dtype=torch.bool)
        full = replace(batch, support_ids=every, support_log_probs=log_q, support_valid=valid)
        results.append(FUNCTIONS["topk_forward_kl"](full, head, SETTINGS["bucket"]))
    ours, theirs = results
    torch.testing.assert_close(ours.per_row, theirs.per_row)
    assert torch.equal(ours.used, theirs.used)


def test_without_such_ids_nothing_changes() -> None:
    case = problem(bias=True)
    assert case.head.undrawn is None
    projection = torch.randn(3, 7)
    assert torch.equal(case.head.finish_rows(projection), case.head.finish(projection))
