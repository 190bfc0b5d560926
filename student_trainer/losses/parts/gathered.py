"""The student's logits at K ids per row, without the product of the whole head, [T, V].

A support of K ids needs K rows of the head: forward reads T * K of them, and backward
writes the gradients of these rows alone. Shapes: T rows, K ids per row, H hidden size,
V vocabulary.
"""

from __future__ import annotations

import functools
import importlib.util
import itertools
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from student_trainer.losses.parts.base import Head

# Elements of gathered head rows in memory at a time. On a CPU a block that fits into the
# cache is several times faster than a large one; a GPU needs large launches.
_CPU_ELEMENTS = 2**20
_GPU_ELEMENTS = 2**26
# Distinct ids whose head gradients are summed in float32 at a time.
_GRADIENT_IDS = 1024


def gathered_logits(hidden: Tensor, head: Head, ids: Tensor) -> Tensor:
    """The student's logits at given ids.

    Args:
        hidden: [T, H].
        head: the output projection.
        ids: int64 [T, K], each in [0, V).

    Returns:
        float32 [T, K], differentiable in hidden and the head's tensors. Products and sums
        are in float32 whatever the parameters' dtype; the weight's gradient is summed in
        float32 and rounded once per call.

    Raises:
        ValueError: an id is outside the vocabulary.
    """
    if ids.numel() and not 0 <= int(ids.min()) <= int(ids.max()) < head.weight.shape[0]:
        raise ValueError(
            f"support ids reach from {int(ids.min())} to {int(ids.max())}, outside the "
            f"student's vocabulary of {head.weight.shape[0]}"
        )
    projection: Tensor = _GatheredProjection.apply(  # type: ignore[no-untyped-call]
        hidden, head.weight, ids, head.accumulate_in_place
    )
    if head.lora is not None:
        reduced = head.lora.reduce(hidden)
        projection = projection + _GatheredProjection.apply(reduced, head.lora.up, ids, False)  # type: ignore[no-untyped-call]
    if head.bias is not None:
        bias = F.embedding(ids, head.bias.unsqueeze(1)).squeeze(-1)
        projection = projection + bias.to(projection.dtype)
    return head.finish(projection)


class _GatheredProjection(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, ids: Tensor, in_place: bool) -> Tensor:
        ctx.save_for_backward(hidden, weight, ids)
        ctx.in_place = in_place
        return _project(hidden, weight, ids)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        hidden, weight, ids = ctx.saved_tensors
        needs_hidden, needs_weight = ctx.needs_input_grad[:2]
        grad_hidden = _weighted_rows(weight, ids, grad).to(hidden.dtype) if needs_hidden else None
        if not needs_weight:
            return grad_hidden, None, None, None
        if ctx.in_place and weight.grad is not None:
            _add_head_gradient(weight.grad, hidden, ids, grad)
            return grad_hidden, None, None, None
        grad_weight = torch.zeros_like(weight)
        _add_head_gradient(grad_weight, hidden, ids, grad)
        return grad_hidden, grad_weight, None, None


def _project(hidden: Tensor, weight: Tensor, ids: Tensor) -> Tensor:
    """hidden_t . weight[ids_tk], float32 (float64 for float64 inputs) [T, K]."""
    if kernels := _kernels(weight):
        logits: Tensor = kernels.project(hidden, weight, ids)
        return logits
    rows, support = ids.shape
    dtype = torch.promote_types(weight.dtype, torch.float32)
    out = torch.empty(rows, support, dtype=dtype, device=hidden.device)
    wide = hidden.to(dtype)
    step = _rows_per_block(ids, weight)
    if weight.device.type == "cpu":
        _project_cached(wide, weight, ids, step, out)
        return out
    for start in range(0, rows, step):
        block = F.embedding(ids[start : start + step], weight).to(dtype)
        column = wide[start : start + step].unsqueeze(-1)
        torch.bmm(block, column, out=out[start : start + step].unsqueeze(-1))
    return out


def _project_cached(wide: Tensor, weight: Tensor, ids: Tensor, step: int, out: Tensor) -> None:
    """Fills ``out`` with the help of one pair of buffers, which stay in the CPU's cache.

    Each row is a product of its own, because torch's batched product is four times slower.
    """
    support, size = ids.shape[1], weight.shape[1]
    step = max(1, min(step, ids.shape[0]))
    gathered = torch.empty(step * support, size, dtype=weight.dtype)
    copy = gathered if weight.dtype == wide.dtype else gathered.to(wide.dtype)
    for start in range(0, ids.shape[0], step):
        here = ids[start : start + step].reshape(-1)
        count = len(here)
        torch.index_select(weight, 0, here, out=gathered[:count])
        if copy is not gathered:
            copy[:count].copy_(gathered[:count])
        for row in range(count // max(support, 1)):
            head_rows = copy[row * support : (row + 1) * support]
            torch.mv(head_rows, wide[start + row], out=out[start + row])


def _weighted_rows(weight: Tensor, ids: Tensor, coefficients: Tensor) -> Tensor:
    """sum_k coefficients_tk * weight[ids_tk], [T, H], in the weight's dtype or wider."""
    if kernels := _kernels(weight):
        total: Tensor = kernels.weighted_rows(weight, ids, coefficients)
        return total
    return F.embedding_bag(
        ids, weight, mode="sum", per_sample_weights=coefficients.to(weight.dtype)
    )


def _add_head_gradient(target: Tensor, hidden: Tensor, ids: Tensor, coefficients: Tensor) -> None:
    """target[v] += sum over (t, k) with ids_tk == v of coefficients_tk * hidden_t.

    The pairs are sorted by id, so that each id's sum is taken in float32 and written once:
    order and rounding do not depend on the blocks.
    """
    if ids.numel() == 0:
        return
    kernels = _kernels(target)
    if kernels and target.is_contiguous():
        kernels.add_head_gradient(target, hidden, ids, coefficients)
        return
    dtype = torch.promote_types(hidden.dtype, torch.float32)
    wide = hidden.to(dtype)
    order = torch.argsort(ids.reshape(-1), stable=True)
    row_of_pair = order // ids.shape[1]
    value_of_pair = coefficients.reshape(-1)[order].to(dtype)
    distinct, counts = torch.unique_consecutive(ids.reshape(-1)[order], return_counts=True)
    ends = torch.cumsum(counts, 0)
    starts = ends - counts
    edges = [*starts[::_GRADIENT_IDS].tolist(), ids.numel()]
    for block, (first, last) in enumerate(itertools.pairwise(edges)):
        here = slice(block * _GRADIENT_IDS, (block + 1) * _GRADIENT_IDS)
        sums = F.embedding_bag(
            row_of_pair[first:last],
            wide,
            starts[here] - first,
            mode="sum",
            per_sample_weights=value_of_pair[first:last],
        )
        target.index_add_(0, distinct[here], sums.to(target.dtype))


def _kernels(parameter: Tensor) -> Any:
    """The Triton kernels if they run here: on CUDA, with Triton installed, not in float64."""
    if parameter.device.type != "cuda" or not _triton_installed():
        return None
    from student_trainer.losses.parts import gathered_triton

    return gathered_triton if parameter.dtype in gathered_triton.KERNEL_DTYPES else None


@functools.cache
def _triton_installed() -> bool:
    return importlib.util.find_spec("triton") is not None


def _rows_per_block(ids: Tensor, weight: Tensor) -> int:
    elements = _GPU_ELEMENTS if weight.device.type == "cuda" else _CPU_ELEMENTS
    return max(1, elements // max(1, ids.shape[1] * weight.shape[1]))
