"""The student's last hidden states out of a call of the whole model, without its logits.

Wrappers (DistributedDataParallel, autocast) act on a call of the model itself. What the output
projection would get is taken on its way, and the projection gets no position at all.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn


def last_hidden_states(model: nn.Module, projection: nn.Module, **inputs: Any) -> Tensor:
    """[B, L, H]: what the output projection reads of each position.

    Args:
        model: the model, wrapped or not.
        projection: its output projection.
        inputs: arguments of the model's call.
    """
    taken: list[Tensor] = []

    def take(_: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
        taken.append(arguments[0])
        return (arguments[0][:, :0], *arguments[1:])

    hook = projection.register_forward_pre_hook(take)
    try:
        model(use_cache=False, **inputs)
    finally:
        hook.remove()
    (hidden,) = taken
    return hidden
