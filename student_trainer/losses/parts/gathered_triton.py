"""The gathered head product on CUDA, as Triton kernels; ``gathered`` is the reference.

Forward and the gradient of hidden work on tiles of consecutive rows. A tile's distinct ids
are found first, so that each head row is read once and multiplied with all rows of the
tile in one dense product. The head's gradient is computed by distinct id over all rows:
each id has one writer, so its sum has one order. Triton evaluates annotations of arguments
among the names that a kernel may use, so that only those of its own are there.
Shapes: T rows, K ids per row, N tiles of R rows, S = R * K slots, H hidden size.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

KERNEL_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
TILE_ROWS = 16
BLOCK_IDS = 64
BLOCK_HIDDEN = 64
BLOCK_PAIRS = 32


@triton.jit  # type: ignore[untyped-decorator]
def _project_kernel(  # type: ignore[no-untyped-def]
    hidden,
    weight,
    distinct,
    counts,
    out,
    rows,
    width,
    slots,
    R: tl.constexpr,
    U: tl.constexpr,
    H: tl.constexpr,
    WIDE: tl.constexpr,
) -> None:
    tile = tl.program_id(0).to(tl.int64)
    first = tl.program_id(1) * U
    count = tl.load(counts + tile)
    if first < count:
        row = tile * R + tl.arange(0, R)
        slot = first + tl.arange(0, U)
        ids = tl.load(distinct + tile * slots + slot, mask=slot < count, other=0)
        total = tl.zeros((R, U), dtype=tl.float32)
        for start in range(0, width, H):
            column = start + tl.arange(0, H)
            h = tl.load(
                hidden + row[:, None] * width + column[None, :],
                mask=(row[:, None] < rows) & (column[None, :] < width),
                other=0.0,
            )
            w = tl.load(
                weight + ids[:, None] * width + column[None, :],
                mask=(slot[:, None] < count) & (column[None, :] < width),
                other=0.0,
            )
            if WIDE:
                h, w = h.to(tl.float32), w.to(tl.float32)
            total += tl.dot(h, tl.trans(w), input_precision="ieee")
        to = out + row[:, None] * slots + slot[None, :]
        tl.store(to, total, mask=(row[:, None] < rows) & (slot[None, :] < count))


@triton.jit  # type: ignore[untyped-decorator]
def _hidden_gradient_kernel(  # type: ignore[no-untyped-def]
    dense,
    weight,
    distinct,
    counts,
    out,
    rows,
    width,
    slots,
    R: tl.constexpr,
    U: tl.constexpr,
    H: tl.constexpr,
    WIDE: tl.constexpr,
) -> None:
    tile = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * H + tl.arange(0, H)
    count = tl.load(counts + tile)
    row = tile * R + tl.arange(0, R)
    total = tl.zeros((R, H), dtype=tl.float32)
    for first in range(0, count, U):
        slot = first + tl.arange(0, U)
        ids = tl.load(distinct + tile * slots + slot, mask=slot < count, other=0)
        d = tl.load(
            dense + row[:, None] * slots + slot[None, :],
            mask=(row[:, None] < rows) & (slot[None, :] < count),
            other=0.0,
        )
        w = tl.load(
            weight + ids[:, None] * width + column[None, :],
            mask=(slot[:, None] < count) & (column[None, :] < width),
            other=0.0,
        )
        w = w.to(tl.float32) if WIDE else w
        d = d if WIDE else d.to(w.dtype)
        total += tl.dot(d, w, input_precision="ieee")
    to = out + row[:, None] * width + column[None, :]
    tl.store(to, total, mask=(row[:, None] < rows) & (column[None, :] < width))


@triton.jit  # type: ignore[untyped-decorator]
def _head_gradient_kernel(  # type: ignore[no-untyped-def]
    hidden,
    coefficients,
    row_of_pair,
    distinct,
    starts,
    ends,
    target,
    width,
    P: tl.constexpr,
    H: tl.constexpr,
) -> None:
    place = tl.program_id(0)
    column = tl.program_id(1) * H + tl.arange(0, H)
    inside = column < width
    end = tl.load(ends + place)
    total = tl.zeros((H,), dtype=tl.float32)
    for first in range(tl.load(starts + place), end, P):
        pair = first + tl.arange(0, P)
        row = tl.load(row_of_pair + pair, mask=pair < end, other=0)
        c = tl.load(coefficients + pair, mask=pair < end, other=0.0)
        h = tl.load(
            hidden + row[:, None] * width + column[None, :],
            mask=(pair[:, None] < end) & inside[None, :],
            other=0.0,
        )
        total += tl.sum(h.to(tl.float32) * c[:, None], axis=0)
    to = target + tl.load(distinct + place) * width + column
    before = tl.load(to, mask=inside, other=0.0).to(tl.float32)
    tl.store(to, before + total, mask=inside)


def project(hidden: Tensor, weight: Tensor, ids: Tensor) -> Tensor:
    """hidden_t . weight[ids_tk], float32 [T, K]."""
    rows = ids.shape[0]
    distinct, counts, slot_of = _tiles(ids)
    slots = distinct.shape[1]
    compact = torch.empty(rows, slots, dtype=torch.float32, device=ids.device)
    grid = (len(counts), triton.cdiv(slots, BLOCK_IDS))
    with _launching_on(ids):
        _project_kernel[grid](
            hidden.to(weight.dtype).contiguous(),
            weight.contiguous(),
            distinct,
            counts,
            compact,
            rows,
            hidden.shape[1],
            slots,
            TILE_ROWS,
            BLOCK_IDS,
            BLOCK_HIDDEN,
            _wide(weight),
        )
    return compact.gather(1, slot_of)


def weighted_rows(weight: Tensor, ids: Tensor, coefficients: Tensor) -> Tensor:
    """sum_k coefficients_tk * weight[ids_tk], float32 [T, H]."""
    rows, width = ids.shape[0], weight.shape[1]
    distinct, counts, slot_of = _tiles(ids)
    slots = distinct.shape[1]
    dense = torch.zeros(rows, slots, dtype=torch.float32, device=ids.device)
    dense.scatter_add_(1, slot_of, coefficients.float())
    out = torch.empty(rows, width, dtype=torch.float32, device=ids.device)
    with _launching_on(ids):
        _hidden_gradient_kernel[(len(counts), triton.cdiv(width, BLOCK_HIDDEN))](
            dense,
            weight.contiguous(),
            distinct,
            counts,
            out,
            rows,
            width,
            slots,
            TILE_ROWS,
            BLOCK_IDS,
            BLOCK_HIDDEN,
            _wide(weight),
        )
    return out


def add_head_gradient(target: Tensor, hidden: Tensor, ids: Tensor, coefficients: Tensor) -> None:
    """target[v] += sum over (t, k) with ids_tk == v of coefficients_tk * hidden_t.

    ``target`` is contiguous.
    """
    if ids.numel() == 0:
        return
    flat = ids.reshape(-1)
    order = torch.argsort(flat, stable=True)
    distinct, counts = torch.unique_consecutive(flat[order], return_counts=True)
    ends = counts.cumsum(0)
    width = hidden.shape[1]
    with _launching_on(ids):
        _head_gradient_kernel[(len(distinct), triton.cdiv(width, BLOCK_HIDDEN))](
            hidden.contiguous(),
            coefficients.reshape(-1)[order].float().contiguous(),
            order // ids.shape[1],
            distinct,
            ends - counts,
            ends,
            target,
            width,
            BLOCK_PAIRS,
            BLOCK_HIDDEN,
        )


def _tiles(ids: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The distinct ids of each tile [N, S], of which the first ``counts`` [N] are set, and
    the slot of each pair among them [T, K]. Nothing is synchronised with the host."""
    rows, support = ids.shape
    tiles = triton.cdiv(rows, TILE_ROWS)
    padded = ids.new_full((tiles * TILE_ROWS, support), -1)
    padded[:rows] = ids
    ordered, order = padded.view(tiles, -1).sort(-1)
    # Padding has id -1, sorts first and takes a slot of its own.
    new = torch.ones_like(ordered, dtype=torch.bool)
    new[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
    place = new.cumsum(-1) - 1
    distinct = torch.zeros_like(ordered).scatter_(1, place, ordered.clamp_min(0))
    slot_of = torch.empty_like(place).scatter_(1, order, place)
    return distinct, place[:, -1] + 1, slot_of.view(-1, support)[:rows].contiguous()


def _launching_on(tensor: Tensor) -> AbstractContextManager[Any]:
    """Triton launches on the current device, whatever device its arguments are on."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else nullcontext()


def _wide(weight: Tensor) -> bool:
    """Whether products are in float32: for float32 parameters, and in Triton's interpreter,
    which cannot multiply matrices of half precision."""
    return weight.dtype == torch.float32 or bool(triton.knobs.runtime.interpret)
