"""The student's weights under the names of its checkpoint, as vLLM reads them."""

from __future__ import annotations

from typing import Any

import torch
from teacher_proto.errors import ConfigurationError
from torch import Tensor, nn

from student_trainer.student.head import check_mergeable
from student_trainer.student.model import Student

WRAPPED = "base_layer."


@torch.no_grad()
def checkpoint_weights(student: Student) -> dict[str, Tensor]:
    """name -> tensor, each once: of weights that are tied the first one is there. Adapters are
    merged into copies of the weights that they adapt; the student itself stays as it is.

    Names and shapes are those of the model's files, also where transformers keeps them
    otherwise in memory.
    """
    model = student.causal_model
    own = model.state_dict() if student.shards is None else student.shards.tensors(model)
    plain = {
        name.replace(WRAPPED, ""): tensor for name, tensor in own.items() if ".lora_" not in name
    }
    for name, delta in _deltas(model):
        plain[name] = (plain[name].float() + delta.float()).to(plain[name].dtype)
    return _as_saved(model, _once(plain))


def check_can_be_handed_over(student: Student) -> None:
    """Refuses an adapter that cannot be merged.

    Raises:
        ConfigurationError: the head has one and shares its weight with the input embedding.
    """
    try:
        if student.has_adapters:
            check_mergeable(student.causal_model)
    except ConfigurationError as error:
        raise ConfigurationError(
            f"{error.what}: vLLM gets the merged weights",
            where=error.where,
            fix='leave the head out, or set rollout.engine = "transformers"',
        ) from error


def _deltas(model: nn.Module) -> list[tuple[str, Tensor]]:
    """What the adapters add to which weight."""
    found: list[tuple[str, Tensor]] = []
    for name, module in model.named_modules():
        active = getattr(module, "active_adapters", None)
        if not active or not hasattr(module, "get_delta_weight"):
            continue
        adapted: Any = module
        parameter = getattr(adapted, "parameter_name", None) or "weight"
        plain = f"{name}.".replace(WRAPPED, "") + parameter
        found += [(plain, adapted.get_delta_weight(adapter)) for adapter in active]
    return found


def _once(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    seen: set[tuple[int, torch.Size]] = set()
    kept = {}
    for name, tensor in tensors.items():
        place = (tensor.data_ptr(), tensor.shape)
        if tensor.numel() and place in seen:
            continue
        seen.add(place)
        kept[name] = tensor
    return kept


def _as_saved(model: Any, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    from transformers.core_model_loading import revert_weight_conversion

    saved: dict[str, Tensor] = revert_weight_conversion(model, tensors)
    return saved
