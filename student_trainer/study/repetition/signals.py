"""Where each objective pushes the next token of the loop. Shapes: R rows, V ids, K of a support.

The losses are the product's own, in float64. Descent moves the logits z by -grad l for each unit of
step, and with them log p(y) of the loop's next token y by

    push = -(grad l)_y + sum over v of p_v (grad l)_v

A push above 0 makes the model go on with the loop more often, one below 0 less often.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from student_trainer.losses import (
    Head,
    LossBatch,
    LossResult,
    LossSettings,
    LsmLoss,
    SampledTokenLoss,
    TopkForwardKlLoss,
    full_reverse_kl,
)

# Rows whose logits are in one batch: the head that stands for them has [V, ROWS].
ROWS = 32
Objective = Callable[[LossBatch, Head], LossResult]


def objectives(top_k: int) -> dict[str, Objective]:
    """The objectives by name, those on a support with the teacher's top K."""
    return {
        "lsm": LsmLoss(top_k=top_k),
        "lsm, tail bucket": LsmLoss(top_k=top_k, tail="bucket"),
        "sampled_token": SampledTokenLoss(),
        "topk_forward_kl": TopkForwardKlLoss(top_k=top_k),
        "full_reverse_kl": lambda batch, head: full_reverse_kl(batch, head, LossSettings()),
    }


def pushes(
    arms: Mapping[str, Objective], logits: Tensor, log_q: Tensor, next_ids: Tensor, top_k: int
) -> dict[str, Tensor]:
    """The push of each objective at each row, float64 [R], in nats for a unit of step.

    The token that was drawn is the loop's own, by the student as it is now: its importance
    ratio is 1.

    Args:
        logits: float64 [R, V], of the student.
        log_q: float64 [R, V], of the teacher.
        next_ids: int64 [R], the loop's next token.
        top_k: K; less than V.
    """
    found: dict[str, list[Tensor]] = {name: [] for name in arms}
    for start in range(0, len(logits), ROWS):
        rows = slice(start, start + ROWS)
        own, ids = logits[rows], next_ids[rows]
        p = torch.softmax(own, -1)
        batch = rows_of(own, log_q[rows], ids, top_k)
        for name, objective in arms.items():
            # One-hot hidden states under this head have the rows' logits, so that the weight's
            # gradient is the gradient at the logits.
            weight = own.T.clone().requires_grad_()
            (grad,) = torch.autograd.grad(objective(batch, Head(weight)).total, weight)
            slope = grad.T
            at_next = slope.gather(1, ids[:, None]).squeeze(1)
            found[name].append((p * slope).sum(-1) - at_next)
    return {name: torch.cat(parts) for name, parts in found.items()}


def rows_of(logits: Tensor, log_q: Tensor, next_ids: Tensor, top_k: int) -> LossBatch:
    """The rows as the losses read them, each with weight 1; arguments as those of ``pushes``."""
    support = log_q.topk(top_k, -1)
    outside = log_q.scatter(1, support.indices, -torch.inf)
    count = len(logits)
    return LossBatch(
        hidden=torch.eye(count, dtype=logits.dtype),
        sampled_ids=next_ids,
        weights=torch.ones(count, dtype=logits.dtype),
        support_ids=support.indices,
        support_log_probs=support.values,
        support_valid=torch.ones_like(support.indices, dtype=torch.bool),
        teacher_log_tail=torch.logsumexp(outside, -1),
        teacher_tail_valid=torch.ones(count, dtype=torch.bool),
        teacher_sampled=log_q.gather(1, next_ids[:, None]).squeeze(1),
        old_log_probs=torch.log_softmax(logits, -1).gather(1, next_ids[:, None]).squeeze(1),
        teacher_logits=log_q,
    )
