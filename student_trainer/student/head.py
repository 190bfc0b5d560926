"""The student's output projection, read from the loaded model in the form that the losses
take."""

from __future__ import annotations

from typing import Any

import torch
from teacher_proto.errors import ConfigurationError
from teacher_proto.program.logit_treatment import read_logit_treatment
from torch import Tensor, nn

from student_trainer.losses.parts.base import Head, LowRank

TARGET_MODULES = "student.lora.target_modules"


def read_head(model: Any) -> Head:
    """The head of a transformers model, with its LoRA adapter when it has one.

    Raises:
        ConfigurationError: it is no linear layer, or its adapter has dropout, which the
            losses cannot apply.
    """
    projection = model.get_output_embeddings()
    base = getattr(projection, "base_layer", projection)
    if type(base) is not nn.Linear:
        raise ConfigurationError(
            f"its head is a {type(base).__name__}, not a plain linear layer",
            where="student.model",
            fix="use a model with a linear head",
        )
    treatment = read_logit_treatment(model.config.get_text_config())
    return Head(
        weight=base.weight,
        bias=base.bias,
        scale=treatment.scale,
        softcap=treatment.softcap,
        lora=None if base is projection else _adapter(projection),
    )


def _adapter(projection: Any) -> LowRank:
    """The adapter of a projection that peft has wrapped."""
    (name,) = projection.active_adapters
    if getattr(projection.lora_dropout[name], "p", 0.0) > 0:
        raise ConfigurationError(
            "an adapter on the head has no dropout: the losses read its weights",
            where=TARGET_MODULES,
            fix="set student.lora.dropout = 0, or leave the head out",
        )
    return LowRank(
        down=projection.lora_A[name].weight,
        up=projection.lora_B[name].weight,
        scale=float(projection.scaling[name]),
    )


def check_mergeable(model: Any) -> None:
    """Refuses an adapter on a tied head: merging it would change the input embedding too.

    Raises:
        ConfigurationError: the head has an adapter and shares its weight.
    """
    projection = model.get_output_embeddings()
    base = getattr(projection, "base_layer", projection)
    if base is not projection and base.weight is model.get_input_embeddings().weight:
        raise ConfigurationError(
            "the head shares its weight with the input embedding, so its adapter cannot be "
            "merged into it",
            where=TARGET_MODULES,
            fix="set student.lora.merge_final = false, or leave the head out",
        )


def head_logits(head: Head, hidden: Tensor) -> Tensor:
    """float32 logits [T, V] of hidden states [T, H]; ``NEVER`` at the ids that no token has."""
    projection = torch.nn.functional.linear(hidden.to(head.weight.dtype), head.weight, head.bias)
    wide = projection.float()
    if head.lora is not None:
        wide = wide + (head.lora.reduce(hidden) @ head.lora.up.T).float()
    return head.finish_rows(wide)
