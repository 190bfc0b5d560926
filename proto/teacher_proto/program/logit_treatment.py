"""What a model of transformers does to the output of its LM head, read from its configuration.

The teacher and the student compute logits from the weights of the head alone, so both
have to apply the rest of what the model does, each to its own tensors.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class LogitTreatment:
    """Turns the head's output x into logits: softcap * tanh(scale * x / softcap).

    Attributes:
        softcap: None for a model without one, whose logits are scale * x.
    """

    scale: float = 1.0
    softcap: float | None = None


def read_logit_treatment(config: object) -> LogitTreatment:
    """The treatment that a text model's configuration asks for."""
    scale = 1.0
    for name in ("logit_scale", "lm_head_multiplier"):
        scale *= float(getattr(config, name, None) or 1.0)
    scale /= float(getattr(config, "logits_scaling", None) or 1.0)
    softcap = getattr(config, "final_logit_softcapping", None)
    return LogitTreatment(scale, float(softcap) if softcap else None)
