"""Float64 references of the losses, by full logits and plain autograd."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from student_trainer import losses
from student_trainer.losses import Head, LossBatch, LossFunction, LossResult, LossSettings, LowRank

NAMES = (
    "lsm",
    "topk_forward_kl",
    "topk_jsd",
    "sampled_token",
    "unnormalised_reverse_kl",
    "generalised_reverse_kl",
    "full_reverse_kl",
    "full_jsd",
)
THRESHOLD, FORWARD_WEIGHT = 1.1, 0.6
FIXED_ADVANTAGE, MAX_LOG_PROB = -0.7, -2.5


def _entropy_switch(batch: LossBatch, head: Head, settings: LossSettings) -> LossResult:
    return losses.EntropySwitchLoss(
        temperature=settings.temperature,
        chunk_rows=settings.chunk_rows,
        tail=settings.tail,
        row_clamp=settings.row_clamp,
        entropy_threshold=THRESHOLD,
        forward_weight=FORWARD_WEIGHT,
    )(batch, head)


def _fixed_advantage(batch: LossBatch, head: Head, settings: LossSettings) -> LossResult:
    return losses.FixedAdvantageLoss(
        temperature=settings.temperature,
        chunk_rows=settings.chunk_rows,
        clip=settings.clip,
        dual_clip=settings.dual_clip,
        advantage=FIXED_ADVANTAGE,
        max_log_prob=MAX_LOG_PROB,
        study=True,
    )(batch, head)


FUNCTIONS: dict[str, LossFunction] = {
    **{name: getattr(losses, name) for name in NAMES},
    "entropy_switch": _entropy_switch,
    "fixed_advantage": _fixed_advantage,
}


def full_logits(hidden: Tensor, head: Head) -> Tensor:
    """[T, V] logits, the long way."""
    projection = hidden @ head.weight.T
    if head.bias is not None:
        projection = projection + head.bias
    if head.lora is not None:
        projection = projection + head.lora.scale * (hidden @ head.lora.down.T) @ head.lora.up.T
    logits = projection * head.scale
    if head.softcap is not None:
        logits = head.softcap * torch.tanh(logits / head.softcap)
    return logits


def divergence(name: str, p: Tensor, q: Tensor, beta: float = 0.5) -> Tensor:
    """By the definition, over outcomes of one row that all have mass."""
    if name in ("lsm", "full_reverse_kl", "unnormalised_reverse_kl"):
        return (p * (p.log() - q.log())).sum()
    if name == "topk_forward_kl":
        return (q * (q.log() - p.log())).sum()
    if name == "generalised_reverse_kl":
        return (p * (p.log() - q.log()) - p + q).sum()
    mean = beta * q + (1 - beta) * p
    return beta * (q * (q / mean).log()).sum() + (1 - beta) * (p * (p / mean).log()).sum()


def support_rows(
    name: str,
    batch: LossBatch,
    head: Head,
    temperature: float,
    *,
    tail: str = "none",
    beta: float = 0.5,
) -> Tensor:
    """l_t row by row and id by id, [T]; 0 for rows with fewer than two valid ids."""
    assert batch.support_ids is not None
    assert batch.support_log_probs is not None
    assert batch.support_valid is not None
    log_pi = torch.log_softmax(full_logits(batch.hidden, head) / temperature, -1)
    rows = []
    for t in range(log_pi.shape[0]):
        valid = batch.support_valid[t]
        if int(valid.sum()) < 2:
            rows.append(log_pi.new_zeros(()))
            continue
        pi = log_pi[t, batch.support_ids[t][valid]].exp()
        q = batch.support_log_probs[t][valid].to(log_pi.dtype).exp()
        alone = q / q.sum()
        unsure = float(-(alone * alone.log()).sum()) > THRESHOLD
        if name in ("unnormalised_reverse_kl", "generalised_reverse_kl"):
            pass
        elif tail == "none":
            pi, q = pi / pi.sum(), q / q.sum()
        elif bool(batch.teacher_tail_valid[t]):
            pi = torch.cat([pi, 1 - pi.sum()[None]])
            q = torch.cat([q, batch.teacher_log_tail[t].exp()[None]])
        if name == "entropy_switch":
            more = FORWARD_WEIGHT * divergence("topk_forward_kl", pi, q) if unsure else 0
            rows.append(divergence("lsm", pi, q) + more)
        else:
            rows.append(divergence(name, pi, q, beta))
    return torch.stack(rows)


def full_rows(
    name: str, batch: LossBatch, head: Head, temperature: float, beta: float = 0.5
) -> Tensor:
    """A divergence over the whole vocabulary, [T]."""
    assert batch.teacher_logits is not None
    pi = torch.softmax(full_logits(batch.hidden, head) / temperature, -1)
    q = torch.softmax(batch.teacher_logits / temperature, -1)
    return torch.stack([divergence(name, a, b, beta) for a, b in zip(pi, q, strict=True)])


def lsm_rows(batch: LossBatch, head: Head, temperature: float) -> Tensor:
    """Renormalised reverse KL, [T]."""
    return support_rows("lsm", batch, head, temperature)


def sampled_token_rows(
    batch: LossBatch, head: Head, temperature: float, clip: float, dual_clip: float
) -> Tensor:
    """Clipped surrogate of each row by full logits, [T]."""
    assert batch.teacher_sampled is not None
    assert batch.old_log_probs is not None
    advantage = batch.teacher_sampled - batch.old_log_probs
    return surrogate_rows(batch, head, temperature, clip, dual_clip, advantage)


def fixed_advantage_rows(
    batch: LossBatch, head: Head, temperature: float, clip: float, dual_clip: float
) -> Tensor:
    """The same with the fixed advantage at the rows of improbable tokens, [T]."""
    assert batch.old_log_probs is not None
    advantage = (batch.old_log_probs <= MAX_LOG_PROB).double() * FIXED_ADVANTAGE
    return surrogate_rows(batch, head, temperature, clip, dual_clip, advantage)


def surrogate_rows(
    batch: LossBatch,
    head: Head,
    temperature: float,
    clip: float,
    dual_clip: float,
    advantage: Tensor,
) -> Tensor:
    assert batch.old_log_probs is not None
    log_pi = torch.log_softmax(full_logits(batch.hidden, head) / temperature, -1)
    taken = log_pi[torch.arange(len(batch.sampled_ids)), batch.sampled_ids]
    ratio = (taken - batch.old_log_probs).exp()
    rows = []
    for r, a in zip(ratio, advantage, strict=True):
        bounded = torch.minimum(r * a, r.clamp(1 - clip, 1 + clip) * a)
        rows.append(-torch.maximum(bounded, dual_clip * a) if a < 0 else -bounded)
    return torch.stack(rows)


@dataclass
class Problem:
    batch: LossBatch
    head: Head

    @property
    def leaves(self) -> list[Tensor]:
        every = [self.batch.hidden, *self.head.tensors]
        return [leaf for leaf in every if leaf is not None]


def problem(
    rows: int = 13,
    support: int = 5,
    hidden: int = 8,
    vocabulary: int = 37,
    *,
    bias: bool = False,
    scale: float = 1.0,
    softcap: float | None = None,
    lora: bool = False,
    seed: int = 0,
    dtype: torch.dtype = torch.float64,
) -> Problem:
    """A random problem whose support slots are partly not valid, hidden and head as leaves."""
    g = torch.Generator().manual_seed(seed)
    teacher = torch.log_softmax(
        torch.randn(rows, vocabulary, generator=g, dtype=torch.float64) * 2, -1
    )
    top = teacher.topk(support, -1)
    valid = torch.arange(support)[None] < torch.randint(2, support + 1, (rows, 1), generator=g)
    sampled = torch.randint(0, vocabulary, (rows,), generator=g)
    head = Head(
        weight=torch.randn(vocabulary, hidden, generator=g, dtype=dtype).requires_grad_(),
        bias=torch.randn(vocabulary, generator=g, dtype=dtype).requires_grad_() if bias else None,
        scale=scale,
        softcap=softcap,
        lora=LowRank(
            torch.randn(2, hidden, generator=g, dtype=dtype).requires_grad_(),
            torch.randn(vocabulary, 2, generator=g, dtype=dtype).requires_grad_(),
            0.7,
        )
        if lora
        else None,
    )
    states = torch.randn(rows, hidden, generator=g, dtype=dtype).requires_grad_()
    with torch.no_grad():
        drawn = torch.log_softmax(full_logits(states, head), -1)[torch.arange(rows), sampled]
        old = drawn + 0.3 * torch.randn(rows, generator=g, dtype=dtype)
    weights = torch.rand(rows, generator=g, dtype=torch.float64) + 0.5
    inside = top.values.exp().where(valid, 0).sum(-1)
    batch = LossBatch(
        hidden=states,
        sampled_ids=sampled,
        weights=weights,
        support_ids=top.indices,
        support_log_probs=top.values,
        support_valid=valid,
        teacher_log_tail=(1 - inside).log(),
        teacher_tail_valid=torch.ones(rows, dtype=torch.bool),
        teacher_sampled=teacher[torch.arange(rows), sampled],
        old_log_probs=old,
        teacher_logits=teacher.to(dtype),
    )
    return Problem(batch, head)


def with_batch(source: Problem, **changes: object) -> Problem:
    return Problem(replace(source.batch, **changes), source.head)  # type: ignore[arg-type]
