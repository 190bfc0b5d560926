"""The product of hidden states and a model's output projection, as the head asks for it."""

from __future__ import annotations

from typing import Protocol

import torch
from teacher_proto.errors import ConfigurationError
from torch import Tensor, nn

BLOCK_ROWS = 256
# On a CPU, bytes of the buffer of logits. A product of fewer rows reads the weights as often as
# one of many: at V=151,936 one of 110 rows, which fill 64 MiB, takes a quarter longer for each
# row than one of 256, and one of 55 takes a half longer.
CPU_BLOCK_BYTES = 64 * 2**20


class Projection(Protocol):
    """Computes logits from hidden states; whatever the model does to them comes after.

    Attributes:
        vocabulary_size: V.
        device: where the hidden states and the logits live.
        block_rows: rows of one call at most.
    """

    vocabulary_size: int
    device: torch.device
    block_rows: int

    def __call__(self, hidden: Tensor) -> Tensor:
        """[n, H] -> [n, V], n <= ``block_rows``; the result lives until the next call."""


class LinearProjection:
    """A model's linear output layer, which multiplies into one buffer.

    Args:
        module: the model's output embedding.
        block_rows: rows of one matrix product at most. None for ``BLOCK_ROWS``, and on a CPU
            for those that ``CPU_BLOCK_BYTES`` hold where they are fewer, one at least.

    Raises:
        ConfigurationError: ``module`` is not a plain linear layer.
    """

    def __init__(self, module: nn.Module | None, block_rows: int | None) -> None:
        if not isinstance(module, nn.Linear) or not module.weight.is_floating_point():
            raise ConfigurationError(
                f"the output head is a {type(module).__name__}, not a plain linear layer",
                where="model",
                fix="serve a checkpoint whose output head is not quantised or replaced",
            )
        self.vocabulary_size = int(module.weight.shape[0])
        self.device: torch.device = module.weight.device
        if block_rows is None:
            block_rows = BLOCK_ROWS
            if self.device.type == "cpu":
                row_bytes = self.vocabulary_size * module.weight.element_size()
                block_rows = min(block_rows, max(1, CPU_BLOCK_BYTES // row_bytes))
        self.block_rows = block_rows
        self._weight = module.weight
        self._bias: Tensor | None = module.bias
        # Kept between calls: fresh pages for every block cost more than its arithmetic.
        self._logits: Tensor | None = None

    def __call__(self, hidden: Tensor) -> Tensor:
        """See ``Projection``; the logits have the dtype of the weights."""
        if self._logits is None:
            shape = (self.block_rows, self.vocabulary_size)
            self._logits = torch.empty(shape, dtype=self._weight.dtype, device=self.device)
        out = self._logits[: hidden.shape[0]]
        if self._bias is None:
            return torch.mm(hidden, self._weight.t(), out=out)
        return torch.addmm(self._bias, hidden, self._weight.t(), out=out)
