"""Gaussian policies on a line: R networks side by side, which do not know of each other."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

# Task, place and time go in; the mean and the raw standard deviation of the next move come out.
WIDTHS = (3, 60, 60, 2)


@dataclass(frozen=True)
class Policies:
    """R networks of three layers with tanh.

    Attributes:
        weights: for each layer [R, in, out]. biases: for each layer [R, 1, out].
        sigma_floor: the least standard deviation.
    """

    weights: tuple[Tensor, ...]
    biases: tuple[Tensor, ...]
    sigma_floor: float

    @classmethod
    def drawn(
        cls,
        generators: Sequence[torch.Generator],
        sigma_floor: float,
        dtype: torch.dtype = torch.float32,
    ) -> Policies:
        """Untrained networks, one from each generator: every weight and bias of a layer with n
        inputs is uniform within 1 / sqrt(n) of 0."""
        weights: list[Tensor] = []
        biases: list[Tensor] = []
        for inputs, outputs in itertools.pairwise(WIDTHS):
            bound = 1 / math.sqrt(inputs)
            shapes = (weights, (inputs, outputs)), (biases, (1, outputs))
            for into, shape in shapes:
                layer = [torch.rand(shape, generator=g, dtype=torch.float64) for g in generators]
                into.append(((2 * torch.stack(layer) - 1) * bound).to(dtype))
        return cls(tuple(weights), tuple(biases), sigma_floor)

    @property
    def parameters(self) -> list[Tensor]:
        """Weights and biases of the first layer, of the second, and of the output layer."""
        return [each for pair in zip(self.weights, self.biases, strict=True) for each in pair]

    def at(self, index: Tensor) -> Policies:
        """Those of int64 [n], n policies with tensors of their own."""
        return replace(
            self,
            weights=tuple(each.detach()[index].clone() for each in self.weights),
            biases=tuple(each.detach()[index].clone() for each in self.biases),
        )

    def learning(self) -> Policies:
        """The same tensors, of which gradients are taken."""
        for each in self.parameters:
            each.requires_grad_()
        return self

    def hidden(self, features: Tensor) -> Tensor:
        """[R, N, 3] to [R, N, 60], the input of the output layer."""
        for weight, bias in zip(self.weights[:-1], self.biases[:-1], strict=True):
            features = torch.tanh(torch.baddbmm(bias, features, weight))
        return features

    def outputs(self, hidden: Tensor) -> Tensor:
        """[R, N, 60] to [R, N, 2]."""
        return torch.baddbmm(self.biases[-1], hidden, self.weights[-1])

    def gaussian(self, outputs: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation, [R, N], of ``outputs``."""
        mean, raw = outputs.unbind(-1)
        return mean, self.sigma_floor + torch.nn.functional.softplus(raw)


def log_density(moves: Tensor, mean: Tensor, sigma: Tensor) -> Tensor:
    """log N(moves; mean, sigma), any shape, nats."""
    return -(((moves - mean) / sigma) ** 2) / 2 - torch.log(sigma) - 0.5 * math.log(2 * math.pi)
