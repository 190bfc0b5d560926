"""Supports of both sides: their ids, their tails, and the losses on them."""

from __future__ import annotations

from dataclasses import replace
from typing import get_args

import pytest
import torch
from torch import Tensor, nn

from student_trainer.losses import Head, LossBatch, LossSettings, LowRank, choose_support
from student_trainer.losses.parts.choose_support import SupportKind
from student_trainer.losses.parts.normaliser import top_ids
from tests.support.loss_reference import FUNCTIONS, full_logits, problem, support_rows

SUPPORTS = get_args(SupportKind)
ROWS, VOCABULARY, K = 13, 37, 5


def answered(hidden: Tensor, head: Head, base: LossBatch) -> tuple[LossBatch, Tensor]:
    """A batch with every block the service can return, and the teacher's [T, V]."""
    q = base.teacher_logits
    assert q is not None
    top = q.topk(K, -1)
    valid = torch.arange(K)[None] < torch.randint(
        3, K + 1, (ROWS, 1), generator=torch.Generator().manual_seed(4)
    )
    ids = top_ids(hidden, head, K, 4, VOCABULARY)
    explicit = torch.ones(ROWS, K, dtype=torch.bool)
    explicit[2, 1] = False
    inside = top.values.exp().where(valid, 0).sum(-1)
    batch = replace(
        base,
        hidden=hidden,
        support_ids=top.indices,
        support_log_probs=top.values,
        support_valid=valid,
        teacher_log_tail=(1 - inside).log(),
        teacher_tail_valid=torch.ones(ROWS, dtype=torch.bool),
        explicit_ids=ids,
        explicit_log_probs=q.gather(1, ids),
        explicit_valid=explicit,
    )
    return batch, q


def expected_ids(batch: LossBatch, support: str, t: int) -> set[int]:
    top = set(batch.support_ids[t][batch.support_valid[t]].tolist())
    student = set(batch.explicit_ids[t][batch.explicit_valid[t]].tolist())
    ids = set()
    if support.startswith("teacher") or support == "union":
        ids |= top
    if support.startswith("student") or support == "union":
        ids |= student
    if support.endswith("+sampled"):
        ids.add(int(batch.sampled_ids[t]))
    return ids


@pytest.mark.parametrize("support", SUPPORTS)
def test_the_support_holds_each_id_once_and_the_tail_is_the_rest(support: str) -> None:
    case = problem(ROWS, K, 8, VOCABULARY)
    batch, q = answered(case.batch.hidden, case.head, case.batch)
    chosen = choose_support(batch, support)
    for t in range(ROWS):
        valid = chosen.support_valid[t]
        ids = chosen.support_ids[t][valid].tolist()
        assert len(ids) == len(set(ids))
        assert set(ids) == expected_ids(batch, support, t)
        torch.testing.assert_close(chosen.support_log_probs[t][valid], q[t, ids])
        outside = [v for v in range(VOCABULARY) if v not in ids]
        torch.testing.assert_close(
            chosen.teacher_log_tail[t], q[t, outside].logsumexp(-1), rtol=1e-9, atol=1e-9
        )
    assert bool(chosen.teacher_tail_valid.all())


def test_removed_ids_move_into_the_tail() -> None:
    case = problem(ROWS, K, 8, VOCABULARY)
    batch, q = answered(case.batch.hidden, case.head, case.batch)
    removed = batch.support_ids[:3, 0]
    chosen = choose_support(batch, "union", removed=removed)
    assert not bool((torch.isin(chosen.support_ids, removed) & chosen.support_valid).any())
    for t in range(ROWS):
        ids = chosen.support_ids[t][chosen.support_valid[t]].tolist()
        outside = [v for v in range(VOCABULARY) if v not in ids]
        torch.testing.assert_close(chosen.teacher_log_tail[t], q[t, outside].logsumexp(-1))


@pytest.mark.parametrize("mass", [0.05, 0.5, 1.0])
def test_the_adaptive_support_stops_at_its_mass(mass: float) -> None:
    case = problem(ROWS, K, 8, VOCABULARY)
    batch, _ = answered(case.batch.hidden, case.head, case.batch)
    chosen = choose_support(batch, "teacher", mass=mass)
    sizes = []
    for t in range(ROWS):
        q = batch.support_log_probs[t][batch.support_valid[t]].exp()
        needed = next((n for n in range(1, len(q)) if float(q[:n].sum()) >= mass), len(q))
        kept = chosen.support_ids[t][chosen.support_valid[t]]
        assert kept.tolist() == batch.support_ids[t][: max(needed, 2)].tolist()
        sizes.append(len(kept))
    assert (set(sizes) == {2}) == (mass == 0.05)
    assert mass < 1 or sum(sizes) == int(batch.support_valid.sum())


def test_a_tail_that_cancels_is_not_made_up() -> None:
    """float32: all of the tail is the sampled token's, and what is left cannot be told."""
    batch = LossBatch(
        hidden=torch.randn(1, 4),
        sampled_ids=torch.tensor([7]),
        weights=torch.ones(1),
        support_ids=torch.tensor([[1, 2]]),
        support_log_probs=torch.tensor([[0.6, 0.3]]).log(),
        support_valid=torch.ones(1, 2, dtype=torch.bool),
        teacher_log_tail=torch.tensor([0.1]).log(),
        teacher_tail_valid=torch.ones(1, dtype=torch.bool),
        teacher_sampled=torch.tensor([0.1 - 1e-7]).log(),
    )
    chosen = choose_support(batch, "teacher+sampled")
    assert bool(chosen.teacher_log_tail.isnan().all())
    result = FUNCTIONS["lsm"](chosen, Head(torch.randn(9, 4)), LossSettings(tail="bucket"))
    assert result.dropped_non_finite == 1


@pytest.mark.parametrize(
    ("support", "lacks", "match"),
    [
        ("teacher", "support_ids", "top-K"),
        ("student", "explicit_ids", "student's ids"),
        ("union", "explicit_ids", "student's ids"),
        ("teacher+sampled", "teacher_sampled", "sampled token"),
    ],
)
def test_a_missing_block_is_named(support: str, lacks: str, match: str) -> None:
    case = problem(ROWS, K, 8, VOCABULARY)
    batch, _ = answered(case.batch.hidden, case.head, case.batch)
    with pytest.raises(ValueError, match=match):
        choose_support(replace(batch, **{lacks: None}), support)
    with pytest.raises(ValueError, match="mass"):
        choose_support(batch, "student", mass=0.9)


def test_top_ids_are_of_the_raw_logits_below_the_limit() -> None:
    case = problem(bias=True, softcap=5.0, lora=True)
    logits = full_logits(case.batch.hidden, case.head).detach()
    got = top_ids(case.batch.hidden, case.head, 6, 4, 30)
    assert torch.equal(got, logits[:, :30].topk(6, -1).indices)
    with pytest.raises(ValueError, match="top 31 of 30"):
        top_ids(case.batch.hidden, case.head, 31, 4, 30)


class Model(nn.Module):
    """Embedding, one layer, head: small enough for float64, real parameters."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        g = torch.Generator().manual_seed(8)

        def draw(*shape: int) -> nn.Parameter:
            return nn.Parameter(torch.randn(*shape, generator=g, dtype=torch.float64) / 2)

        self.embedding, self.layer, self.weight = draw(VOCABULARY, 8), draw(8, 8), draw(37, 8)
        self.down, self.up = draw(2, 8), draw(VOCABULARY, 2)
        if kind == "tied":
            self.weight = self.embedding
        if kind in ("frozen", "lora"):
            self.weight.requires_grad_(False)
        self.lora = LowRank(self.down, self.up, 0.5) if kind == "lora" else None

    def head(self) -> Head:
        return Head(self.weight, lora=self.lora)

    def forward(self, ids: Tensor) -> Tensor:
        return torch.tanh(self.embedding[ids] @ self.layer)

    def gradients(self, total: Tensor) -> dict[str, Tensor]:
        named = {n: p for n, p in self.named_parameters() if p.requires_grad}
        found = torch.autograd.grad(total, list(named.values()), allow_unused=True)
        return {n: g for n, g in zip(named, found, strict=True) if g is not None}


@pytest.mark.parametrize("kind", ["trainable", "frozen", "tied", "lora"])
@pytest.mark.parametrize("tail", ["none", "bucket"])
@pytest.mark.parametrize("support", SUPPORTS)
@pytest.mark.parametrize("name", ["lsm", "topk_forward_kl", "topk_jsd", "unnormalised_reverse_kl"])
def test_gradients_reach_the_model_as_by_full_logits(
    name: str, support: str, tail: str, kind: str
) -> None:
    model = Model(kind)
    base = problem(ROWS, K, 8, VOCABULARY).batch
    ids = torch.arange(ROWS) * 3 % VOCABULARY
    settings = LossSettings(temperature=0.8, chunk_rows=4, tail=tail, beta=0.3, study=True)
    hidden = model(ids)
    chosen = choose_support(answered(hidden, model.head(), base)[0], support)
    result = FUNCTIONS[name](chosen, model.head(), settings)
    actual = model.gradients(result.total)
    rows = support_rows(
        name, replace(chosen, hidden=model(ids)), model.head(), 0.8, tail=tail, beta=0.3
    )
    torch.testing.assert_close(result.per_row, rows.detach(), rtol=1e-9, atol=1e-10)
    expected = model.gradients((rows * chosen.weights).sum())
    assert actual.keys() == expected.keys()
    assert ("weight" in actual) == (kind == "trainable")
    assert ("up" in actual) == (kind == "lora")
    for key, value in expected.items():
        torch.testing.assert_close(actual[key], value, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("support", SUPPORTS)
@pytest.mark.parametrize("tail", ["none", "bucket"])
def test_student_equal_to_teacher_gives_no_loss_on_any_support(support: str, tail: str) -> None:
    case = problem(ROWS, K, 8, VOCABULARY)
    own = torch.log_softmax(full_logits(case.batch.hidden, case.head).detach(), -1)
    base = replace(
        case.batch,
        teacher_logits=own,
        teacher_sampled=own.gather(1, case.batch.sampled_ids[:, None]).squeeze(1),
    )
    batch, _ = answered(case.batch.hidden, case.head, base)
    chosen = choose_support(batch, support)
    for name in ("lsm", "topk_forward_kl", "topk_jsd"):
        result = FUNCTIONS[name](chosen, case.head, LossSettings(tail=tail))
        assert float(result.per_row.abs().max()) < 1e-9
        for grad in torch.autograd.grad(result.total, case.leaves):
            assert float(grad.abs().max()) < 1e-7
