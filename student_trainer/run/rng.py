"""State of the random generators that a step draws from.

Rollouts, the order of prompts and the choice of rows for metrics draw from streams that
are derived anew from the seed (rollout/sampling.py). Dropout draws from torch's generator
of the device that the student is on. Nothing else is random, and nothing draws from
Python's or NumPy's global generators.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping

import torch
from torch import Tensor

log = logging.getLogger(__name__)

CPU = torch.device("cpu")


def capture_rng(device: torch.device = CPU) -> dict[str, Tensor]:
    """The state of torch's generators for the CPU and for the student's device, uint8.

    Which GPU it is, and how many there are, does not count: a run may go on where its
    device has another number.
    """
    states = {"torch": torch.get_rng_state()}
    if device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device)
    return states


def restore_rng(states: Mapping[str, Tensor], device: torch.device = CPU) -> None:
    """Sets the generators to a captured state.

    Earlier versions kept one state for every GPU of the machine, by its number. Where the
    state of the student's device is not among them, its generator stays as the seed has
    set it, with a warning: what dropout draws is then not what it would have drawn.
    """
    torch.set_rng_state(states["torch"])
    if device.type != "cuda":
        return
    number = torch.cuda.current_device() if device.index is None else device.index
    state = states.get("cuda", states.get(f"cuda{number}"))
    if state is not None:
        torch.cuda.set_rng_state(state, device)
        return
    kept = sorted(name for name in states if re.fullmatch(r"cuda\d+", name))
    log.warning(
        "the checkpoint has no state of the generator of %s (it has %s): dropout, where there is "
        "any, is drawn from the seed anew",
        device, ", ".join(kept) or "none of a GPU",
    )  # fmt: skip
