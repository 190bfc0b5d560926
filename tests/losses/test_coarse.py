"""Coarse rows against a float64 reference over the whole vocabulary: certified ids, and one
outcome for everything else on both sides."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from student_trainer.losses import LOSSES, Head, LossBatch, LossSettings, choose_support, lsm
from tests.support.loss_reference import Problem, full_logits, problem, support_rows, with_batch

T, V, K = 13, 37, 5
NAMES = ["lsm", "topk_forward_kl", "topk_jsd"]
SUPPORTS = ["teacher", "teacher+sampled", "student", "student+sampled", "union"]
HEADS: list[dict[str, Any]] = [
    {},
    {"bias": True, "scale": 2.0, "softcap": 4.0},
    {"lora": True, "bias": True, "scale": 0.5},
]
SETTINGS = LossSettings(temperature=0.7, chunk_rows=4, beta=0.3)
COARSE = torch.arange(T) % 3 == 1


def two_sides(name: str, p: Tensor, q: Tensor) -> Tensor:
    """The definition, over outcomes that all have mass."""
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
        rows.append(two_sides(name, ps, qs) if len(ps) > 1 else p.new_zeros(()))
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


@pytest.mark.parametrize("undrawn", [None, (0, 17, 36)])
@pytest.mark.parametrize("head", HEADS, ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_a_coarse_row_compares_its_ids_and_all_the_rest(
    name: str, head: dict[str, Any], undrawn: tuple[int, ...] | None
) -> None:
    case = certified(problem(T, K, 8, V, **head))
    if undrawn is not None:
        case = Problem(case.batch, replace(case.head, undrawn=torch.tensor(undrawn)))
        case = Problem(
            choose_support(case.batch, "teacher", removed=torch.tensor(undrawn)), case.head
        )
    batch = case.batch
    result = LOSSES[name](batch, case.head, SETTINGS)
    rows = reference(name, batch, case.head, ids_of(batch), COARSE)
    used = result.used
    assert int(used[COARSE].sum()) >= 3
    torch.testing.assert_close(result.per_row, rows.detach().where(used, 0), rtol=1e-9, atol=1e-12)
    same(result.total, (rows * batch.weights * used).sum(), case)


@pytest.mark.parametrize(
    ("support", "mass"), [*((s, None) for s in SUPPORTS), ("teacher+sampled", 0.6), ("union", 0.6)]
)
@pytest.mark.parametrize("name", NAMES)
def test_what_joins_or_leaves_the_support_changes_the_rest(
    name: str, support: str, mass: float | None
) -> None:
    """The rest is everything that is not compared, whichever support a row has."""
    case = certified(problem(T, K, 8, V))
    q = case.batch.teacher_logits
    assert q is not None
    own = full_logits(case.batch.hidden, case.head).detach().topk(K, -1).indices
    # Of coarse rows some of the student's ids and some sampled tokens are not certified.
    known = ~COARSE[:, None] | (torch.arange(K) % 2 == 0)
    sampled = q.gather(1, case.batch.sampled_ids[:, None])[:, 0]
    asked = replace(
        case.batch,
        explicit_ids=own,
        explicit_log_probs=q.gather(1, own).where(known, 0),
        explicit_valid=known,
        teacher_sampled=sampled.where(~COARSE | (torch.arange(T) % 2 == 0), torch.nan),
    )
    removed = torch.tensor([3, 11])
    batch = choose_support(asked, support, mass=mass, removed=removed)  # type: ignore[arg-type]
    case = Problem(batch, case.head)
    result = LOSSES[name](batch, case.head, SETTINGS)
    assert result.dropped_non_finite == 0
    chosen = ids_of(batch)
    assert not any(ids & {3, 11} for ids in chosen)
    rows = reference(name, batch, case.head, chosen, COARSE)
    rows = rows.where(result.used, 0)
    assert bool(result.used[COARSE].all())
    same(result.total, (rows * batch.weights).sum(), case)


@pytest.mark.parametrize("name", NAMES)
def test_the_other_rows_follow_the_tail_that_is_set(name: str) -> None:
    case = certified(problem(T, K, 8, V))
    for tail in ("none", "bucket"):
        result = LOSSES[name](case.batch, case.head, replace(SETTINGS, tail=tail))
        others = support_rows(name, case.batch, case.head, 0.7, tail=tail, beta=0.3)
        coarse = reference(name, case.batch, case.head, ids_of(case.batch), COARSE)
        same(result.total, (torch.where(COARSE, coarse, others) * case.batch.weights).sum(), case)


@pytest.mark.parametrize("name", NAMES)
def test_coarse_rows_and_others_together_are_what_they_are_apart(name: str) -> None:
    case = certified(problem(T, K, 8, V))
    whole = LOSSES[name](case.batch, case.head, SETTINGS)
    weights = case.batch.weights

    def of(kept: Tensor) -> Tensor:
        part = with_batch(case, weights=weights.where(kept, 0))
        return LOSSES[name](part.batch, part.head, SETTINGS).total

    same(of(COARSE) + of(~COARSE), whole.total, case)
    first = torch.arange(T) < 5
    same(of(first) + of(~first), whole.total, case)
    # A batch of coarse rows alone, as a micro-batch may be.
    rows = torch.nonzero(COARSE)[:, 0]
    part = {k: v[rows] for k, v in vars(case.batch).items() if v is not None}
    alone = LOSSES[name](replace(case.batch, **part), case.head, SETTINGS).total
    same(alone, of(COARSE), case)


def test_a_batch_that_says_that_no_row_is_coarse_is_one_that_says_nothing() -> None:
    case = problem(T, K, 8, V, dtype=torch.float32)
    none = with_batch(case, coarse=torch.zeros(T, dtype=torch.bool))
    before, now = (lsm(c.batch, c.head, SETTINGS) for c in (case, none))
    assert torch.equal(before.total, now.total)
    assert before.metrics == now.metrics
    for a, b in zip(
        torch.autograd.grad(before.total, case.leaves),
        torch.autograd.grad(now.total, case.leaves),
        strict=True,
    ):
        assert torch.equal(a, b)


def test_a_coarse_row_needs_two_outcomes() -> None:
    case = certified(problem(T, K, 8, V))
    valid = case.batch.support_valid.clone()  # type: ignore[union-attr]
    valid[0], valid[4], valid[7] = torch.arange(K) < 1, False, torch.arange(K) < 1
    known = torch.ones(T, dtype=torch.bool)
    known[7] = False
    small = with_batch(case, support_valid=valid, teacher_tail_valid=known)
    result = lsm(small.batch, small.head, SETTINGS)
    # One id of a row that is not coarse; a coarse row without ids; one without a rest.
    assert torch.nonzero(~result.used)[:, 0].tolist() == [0, 4, 7]
    assert (result.dropped_small_support, result.dropped_non_finite) == (3, 0)
    assert bool(result.used[1]), "a single certified id and the rest are two outcomes"


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_a_coarse_row_whose_rest_is_not_finite_is_dropped(value: float) -> None:
    case = certified(problem(T, K, 8, V))
    tail = case.batch.teacher_log_tail.clone()  # type: ignore[union-attr]
    tail[[0, 4]] = value  # of row 0, which is not coarse, nobody reads it
    bad = with_batch(case, teacher_log_tail=tail)
    result = lsm(bad.batch, bad.head, SETTINGS)
    assert torch.nonzero(~result.used)[:, 0].tolist() == [4]
    assert result.dropped_non_finite == 1
    for grad in torch.autograd.grad(result.total, bad.leaves):
        assert bool(grad.isfinite().all())


def test_a_single_id_and_its_rest_need_no_wider_support() -> None:
    case = certified(problem(T, K, 8, V))
    rows = torch.nonzero(COARSE)[:, 0]
    q = case.batch.teacher_logits[rows].exp()  # type: ignore[index]
    one = q.argsort(-1, descending=True)[:, 2:3]
    part = {k: v[rows] for k, v in vars(case.batch).items() if v is not None}
    batch = replace(
        replace(case.batch, **part),
        support_ids=one,
        support_log_probs=q.gather(1, one).log(),
        support_valid=torch.ones_like(one, dtype=torch.bool),
        teacher_log_tail=(1 - q.gather(1, one)[:, 0]).log(),
    )
    result = lsm(batch, case.head, SETTINGS)
    p = torch.softmax(full_logits(batch.hidden, case.head) / 0.7, -1).gather(1, one)[:, 0]
    at = q.gather(1, one)[:, 0]
    rows_loss = p * (p / at).log() + (1 - p) * ((1 - p) / (1 - at)).log()
    same(result.total, (rows_loss * batch.weights).sum(), case)


@pytest.mark.parametrize("name", NAMES)
def test_a_tiny_rest_keeps_its_gradient_in_float32(name: str) -> None:
    """Both sides' rests are a millionth: 1 minus a float32 sum would have lost them."""
    made = torch.Generator().manual_seed(5)
    logits = torch.randn(T, V, generator=made, dtype=torch.float64)
    logits[:, :K] += 14
    q = torch.softmax(logits + 0.3 * torch.randn(T, V, generator=made, dtype=torch.float64), -1)
    leaf = logits.clone().requires_grad_()
    narrow = logits.float().requires_grad_()
    ids = torch.arange(K).expand(T, K)
    base = problem(T, K, 8, V).batch
    batch = replace(
        base,
        hidden=narrow,
        weights=torch.ones(T),
        support_ids=ids,
        support_log_probs=q[:, :K].log().float(),
        support_valid=torch.ones(T, K, dtype=torch.bool),
        teacher_log_tail=q[:, K:].sum(-1).log().float(),
        coarse=torch.ones(T, dtype=torch.bool),
    )
    settings = replace(SETTINGS, temperature=1.0)
    total = LOSSES[name](batch, Head(torch.eye(V)), settings).total
    p = torch.softmax(leaf, -1)
    rows = [
        two_sides(
            name,
            torch.cat([p[t, :K], p[t, K:].sum()[None]]),
            torch.cat([q[t, :K], q[t, K:].sum()[None]]),
        )
        for t in range(T)
    ]
    (ours,) = torch.autograd.grad(total, narrow)
    (theirs,) = torch.autograd.grad(torch.stack(rows).sum(), leaf)
    assert float(p.detach()[:, K:].sum(-1).max()) < 1e-4
    torch.testing.assert_close(ours[:, :K].double(), theirs[:, :K], rtol=1e-3, atol=1e-6)
    torch.testing.assert_close(ours[:, K:].double(), theirs[:, K:], rtol=1e-3, atol=1e-12)


@dataclass(frozen=True)
class CountingHead(Head):
    """A head that notes how many whole rows are computed at a time."""

    blocks: list[int] = field(default_factory=list)

    def finish_rows(self, projection: Tensor) -> Tensor:
        self.blocks.append(len(projection))
        return super().finish_rows(projection)


def test_only_coarse_rows_are_multiplied_with_the_whole_head() -> None:
    case = certified(problem(T, K, 8, V))
    head = CountingHead(case.head.weight)
    total = lsm(case.batch, head, replace(SETTINGS, chunk_rows=3)).total
    assert head.blocks == [3, 1], "the four coarse rows, three at a time"
    total.backward()  # type: ignore[no-untyped-call]
    assert head.blocks == [3, 1, 3, 1]


def test_a_student_that_is_the_teacher_has_no_loss_on_coarse_rows() -> None:
    case = problem(T, K, 8, V)
    own = torch.log_softmax(full_logits(case.batch.hidden, case.head).detach() / 0.7, -1)
    case = certified(with_batch(case, teacher_logits=own))
    for name in NAMES:
        result = LOSSES[name](case.batch, case.head, SETTINGS)
        assert float(result.per_row.abs().max()) < 1e-12
        for grad in torch.autograd.grad(result.total, case.leaves):
            assert float(grad.abs().max()) < 1e-9


def test_the_figures_of_coarse_rows_are_apart() -> None:
    case = certified(problem(T, K, 8, V))
    free = lsm(case.batch, case.head, SETTINGS)
    bound = float(free.per_row.median())
    result = lsm(case.batch, case.head, replace(SETTINGS, row_clamp=bound))
    others = lsm(
        with_batch(case, weights=case.batch.weights.where(~COARSE, 0)).batch,
        case.head,
        replace(SETTINGS, row_clamp=bound),
    )
    assert result.metrics == others.metrics
    assert result.coarse_metrics == {
        "coarse_loss": pytest.approx(float(free.per_row[COARSE].clamp_max(bound).sum())),
        "row_clamped": int((free.per_row[COARSE] > bound).sum()),
    }
    assert lsm(problem().batch, problem().head, SETTINGS).coarse_metrics == {}


def test_what_coarse_rows_need_is_said() -> None:
    case = certified(problem(T, K, 8, V))
    with pytest.raises(ValueError, match="coarse rows need the teacher's log_tail"):
        lsm(replace(case.batch, teacher_log_tail=None), case.head, SETTINGS)
    study = replace(SETTINGS, study=True)
    with pytest.raises(ValueError, match="does not compare the rest of a coarse row"):
        LOSSES["unnormalised_reverse_kl"](case.batch, case.head, study)
    without = with_batch(case, weights=case.batch.weights.where(~COARSE, 0))
    assert int(LOSSES["unnormalised_reverse_kl"](without.batch, case.head, study).used.sum()) == 9
