"""The gradient of a large embedding, added to where gradients add up.

torch makes a table as large as the embedding for every backward pass, although a micro-batch reads
few of its rows. On a CPU, filling and adding it takes longer than some layers do.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@contextmanager
def adds_in_place(embedding: nn.Module) -> Iterator[None]:
    """Inside, backward passes add the gradient of the rows that were read to ``weight.grad``.

    Does nothing where the module is no plain embedding on a CPU, is not trained, or has no
    gradient to add to: sums on a GPU would depend on the order of its threads.
    """
    weight: Any = getattr(embedding, "weight", None)
    if not (
        type(embedding) is nn.Embedding
        and weight.device.type == "cpu"
        and weight.requires_grad
        and weight.grad is not None
        and embedding.max_norm is None
        and not embedding.scale_grad_by_freq
        and "forward" not in vars(embedding)
    ):
        yield
        return

    def forward(ids: Tensor) -> Tensor:
        found: Tensor = _Rows.apply(weight, ids, embedding.padding_idx)  # type: ignore[no-untyped-call]
        return found

    setattr(embedding, "forward", forward)  # noqa: B010
    try:
        yield
    finally:
        del embedding.forward


class _Rows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weight: Tensor, ids: Tensor, padding: int | None) -> Tensor:
        ctx.save_for_backward(ids)
        ctx.weight, ctx.padding = weight, padding
        return F.embedding(ids, weight)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[None, None, None]:
        (ids,) = ctx.saved_tensors
        ids, rows = ids.reshape(-1), grad.reshape(-1, grad.shape[-1])
        if ctx.padding is not None:
            kept = torch.nonzero(ids != ctx.padding).squeeze(1)
            ids, rows = ids[kept], rows[kept]
        ctx.weight.grad.index_add_(0, ids, rows)
        return None, None, None
