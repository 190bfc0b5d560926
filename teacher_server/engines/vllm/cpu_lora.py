"""LoRA products for vLLM's CPU workers. Nothing here imports vLLM.

vLLM 0.32 gathers an adapter's whole matrix for every token, and applies the adapter of
the last slot to tokens that have none (vllm-project/vllm pull requests 48421 and 49656).
Not needed once a vLLM of the pinned range contains one of those two and
tests/engines/test_vllm_adapters.py passes without this file.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor


def install(wrapper: Any) -> None:
    """Replaces the products of a ``PunicaWrapperCPU`` by those below."""
    assert callable(wrapper._apply_shrink)
    assert callable(wrapper._apply_expand)
    wrapper._apply_shrink = partial(shrink, wrapper)
    wrapper._apply_expand = partial(expand, wrapper)


def shrink(wrapper: Any, y: Tensor, x: Tensor, weights: Tensor, scale: float) -> None:
    """y[n, r] = scale * x[n, in] @ A.T with the A of each token; 0 for tokens without one.

    Args:
        weights: [slots, 1, r, in].
    """
    y.zero_()
    for slot, tokens in _slots(wrapper, x):
        y[tokens] = scale * (x[tokens] @ weights[slot, 0].T).to(y.dtype)


def expand(
    wrapper: Any,
    y: Tensor,
    x: Tensor,
    weights: Tensor,
    offset: int,
    size: int,
    add_inputs: bool = True,
) -> None:
    """y[n, offset:offset + size] += x[n, r] @ B.T with the B of each token.

    Args:
        weights: [slots, 1, size, r].
    """
    assert add_inputs, "vLLM adds to the output of the base"
    for slot, tokens in _slots(wrapper, x):
        delta = x[tokens].to(weights.dtype) @ weights[slot, 0].T
        y[tokens, offset : offset + size] += delta[:, :size].to(y.dtype)


def _slots(wrapper: Any, x: Tensor) -> Iterator[tuple[int, Tensor]]:
    """(slot, int64 indices of its tokens) for every adapter in the step."""
    indices = wrapper.token_lora_indices[: x.shape[0]]
    for slot in torch.unique(indices).tolist():
        if slot >= 0:
            yield slot, torch.nonzero(indices == slot).squeeze(1)
